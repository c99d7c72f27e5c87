//! The image tokenizer (`model.vqmodel`): pixels to codes and back. VQ-16 of LlamaGen, as `vq_model.py` of
//! deepseek-ai/Janus at `1daa72f` runs it. Always in f32: in bf16 about one code in fourteen changes.

mod blocks;
mod decoder;
mod encoder;
mod quantizer;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use self::decoder::Decoder;
use self::encoder::Encoder;
use self::quantizer::{Quantized, Quantizer};
use super::loader::Loader;
use crate::checkpoint::Checkpoint;
use crate::config::VqConfig;
use crate::error::{ModelError, Result};
use crate::pass::Pass;
use crate::site::Projection;

/// The type the image tokenizer computes in.
pub(crate) const DTYPE: DType = DType::F32;

/// Pictures taken to codes and back, with what their training minimises.
#[derive(Debug)]
pub struct Reconstruction {
    /// The pictures again, `[images, 3, side, side]`, near [-1, 1] but not clamped.
    pub pixels: Tensor,
    /// Mean squared distance of the latents' values from their code vectors', which moves the latents; a scalar
    /// (`vq_model.py` of LlamaGen).
    pub commitment: Tensor,
    /// The same, which moves the code vectors.
    pub codebook: Tensor,
    /// The code of each place, image by image in raster order.
    pub codes: Vec<u32>,
    /// The unit latent of each place, `[places, embed_dim]`, without a graph.
    pub latents: Tensor,
}

/// Encoder, quantiser and decoder of pictures.
#[derive(Debug)]
pub struct ImageTokenizer {
    encoder: Encoder,
    quant_conv: Arc<Projection>,
    quantizer: Quantizer,
    post_quant_conv: Arc<Projection>,
    decoder: Decoder,
    factor: usize,
}

impl ImageTokenizer {
    /// Opens the image tokenizer alone, without a model around it: nothing can change what it computes. `progress` is
    /// told the bytes of each tensor as it arrives.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn open(checkpoint: &Checkpoint, device: &Device, progress: &mut dyn FnMut(u64)) -> Result<Self> {
        Self::load(&mut Loader::new(checkpoint, device, progress), &checkpoint.config().vq)
    }

    pub(crate) fn load(loader: &mut Loader<'_>, config: &VqConfig) -> Result<Self> {
        let path = "model.vqmodel";
        Ok(Self {
            encoder: Encoder::load(loader, &format!("{path}.encoder"), config)?,
            quant_conv: loader.projection(&format!("{path}.quant_conv"), true, DTYPE)?,
            quantizer: Quantizer::load(loader, &format!("{path}.quantize"), config)?,
            post_quant_conv: loader.projection(&format!("{path}.post_quant_conv"), true, DTYPE)?,
            decoder: Decoder::load(loader, &format!("{path}.decoder"), config)?,
            factor: config.down_factor(),
        })
    }

    /// What the encoder gives, before `quant_conv`: `[images, 3, side, side]` in [-1, 1], on any device, to
    /// `[images, latent_channels, grid, grid]`.
    ///
    /// # Errors
    /// A side that the downsampling does not divide.
    pub fn encoder_output(&self, pass: &Pass, pixels: &Tensor) -> Result<Tensor> {
        match pixels.dims() {
            [_, 3, height, width] if height % self.factor == 0 && width % self.factor == 0 => {}
            other => {
                let expected = format!("[images, 3, side, side] with a side that {} divides", self.factor);
                return Err(ModelError::Shape { what: "pixels", expected, got: other.to_vec() }.into());
            }
        }
        self.encoder.forward(pass, &pixels.to_dtype(DTYPE)?.to_device(self.quantizer.device())?)
    }

    /// Latents before quantisation: pixels as in [`ImageTokenizer::encoder_output`] to `[images, embed_dim, grid, grid]`.
    ///
    /// # Errors
    /// A side that the downsampling does not divide.
    pub fn latents(&self, pass: &Pass, pixels: &Tensor) -> Result<Tensor> {
        self.quant_conv.forward(pass, &self.encoder_output(pass, pixels)?)
    }

    /// Codes of pictures in raster order, one row each. Pixels as in [`ImageTokenizer::encoder_output`].
    ///
    /// # Errors
    /// A side that the downsampling does not divide.
    pub fn encode(&self, pass: &Pass, pixels: &Tensor) -> Result<Vec<Vec<u32>>> {
        self.quantizer.nearest(&self.latents(pass, pixels)?)
    }

    /// Pictures through the whole tokenizer, so that it can be trained: the gradient of the decoder's input passes to the
    /// encoder as if there were no codes between them (van den Oord and others, arXiv:1711.00937, section 3.2). Not
    /// `quantized`, the decoder reads the latents themselves. Pixels as in [`ImageTokenizer::encoder_output`].
    ///
    /// # Errors
    /// A side that the downsampling does not divide.
    pub fn reconstruct(&self, pass: &Pass, pixels: &Tensor, quantized: bool) -> Result<Reconstruction> {
        let Quantized { unit, straight, commitment, codebook, codes, latents } =
            self.quantizer.straight_through(&self.latents(pass, pixels)?)?;
        let straight = if quantized { straight } else { unit };
        let pixels = self.decoder.forward(pass, &self.post_quant_conv.forward(pass, &straight)?)?;
        Ok(Reconstruction { pixels, commitment, codebook, codes, latents })
    }

    /// Unit code vectors on their grid: `[images, embed_dim, grid, grid]`.
    ///
    /// # Errors
    /// Rows that are no square, or a code beyond the codebook.
    pub fn codebook_entries(&self, codes: &[Vec<u32>]) -> Result<Tensor> {
        self.quantizer.entries(codes)
    }

    /// What the decoder reads: `[images, latent_channels, grid, grid]`.
    ///
    /// # Errors
    /// Rows that are no square, or a code beyond the codebook.
    pub fn post_quant(&self, pass: &Pass, codes: &[Vec<u32>]) -> Result<Tensor> {
        self.post_quant_conv.forward(pass, &self.codebook_entries(codes)?)
    }

    /// Pictures of codes: `[images, 3, side, side]`, near [-1, 1] but not clamped.
    ///
    /// # Errors
    /// Rows that are no square, or a code beyond the codebook.
    pub fn decode(&self, pass: &Pass, codes: &[Vec<u32>]) -> Result<Tensor> {
        Ok(self.decoder.forward(pass, &self.post_quant(pass, codes)?)?.contiguous()?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::checkpoint::RandomWeights;
    use crate::config::JanusConfig;
    use crate::model::{Janus, Parts};
    use crate::noise;
    use crate::ops::with_composed;

    fn model() -> Janus {
        let weights = RandomWeights::new(&JanusConfig::shape("janus-tiny").unwrap(), 5);
        let parts = Parts { image_tokenizer: true, ..Parts::default() };
        Janus::open(&weights, DType::F32, &Device::Cpu, parts, &mut |_| ()).unwrap()
    }

    fn drawn(shape: &[usize], seed: u64) -> Tensor {
        let count = shape.iter().product::<usize>() as u64;
        let values: Vec<f32> = (0..count).map(|i| (noise::uniform(seed, i) * 2.0 - 1.0) as f32).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    /// A variable in the place of a parameter.
    fn variable(model: &Janus, name: &str) -> Var {
        let var = Var::from_tensor(&model.parameters().get(name).unwrap().frozen().values()).unwrap();
        model.parameters().substitute(name, Some(var.as_tensor().clone())).unwrap();
        var
    }

    fn number(scalar: &Tensor) -> f64 {
        f64::from(scalar.to_scalar::<f32>().unwrap())
    }

    #[test]
    fn pictures_come_back_as_encoding_and_decoding_give_them() {
        let (model, pass) = (model(), Pass::inference());
        let (tokenizer, pixels) = (model.image_tokenizer().unwrap(), drawn(&[2, 3, 32, 32], 1));
        let again = tokenizer.reconstruct(&pass, &pixels, true).unwrap();
        let codes = tokenizer.encode(&pass, &pixels).unwrap();
        assert_eq!(again.codes, codes.concat());
        let decoded = tokenizer.decode(&pass, &codes).unwrap();
        let largest = |a: &Tensor, b: &Tensor| {
            let apart = (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
            apart.to_scalar::<f32>().unwrap()
        };
        assert!(largest(&again.pixels, &decoded) < 1e-5);
        // Not quantised, the decoder reads something else; both distances are of unit rows.
        let plain = tokenizer.reconstruct(&pass, &pixels, false).unwrap();
        assert!(largest(&plain.pixels, &decoded) > 1e-3);
        assert_eq!(number(&again.commitment), number(&again.codebook));
        let (places, width) = again.latents.dims2().unwrap();
        assert_eq!((places, width), (32, 8));
        let entries = tokenizer.codebook_entries(&codes).unwrap().permute((0, 2, 3, 1)).unwrap();
        let rows = entries.contiguous().unwrap().reshape((places, width)).unwrap();
        let distance = number(&(rows - &again.latents).unwrap().sqr().unwrap().mean_all().unwrap());
        assert!((distance - number(&again.commitment)).abs() < 1e-6);
    }

    /// Of the decoder, whose loss has no jumps, against differences; of the encoder against the way without codes, whose
    /// gradient it is given; of the codebook from its own loss alone.
    #[test]
    fn gradients_pass_by_the_codes() {
        let (model, pass) = (model(), Pass::inference());
        let pixels = drawn(&[2, 3, 32, 32], 1);
        let names = [
            "model.vqmodel.decoder.mid.block_1.conv1.weight",
            "model.vqmodel.decoder.up.1.upsample.conv.bias",
            "model.vqmodel.decoder.norm_out.weight",
            "model.vqmodel.encoder.down.0.downsample.conv.weight",
            "model.vqmodel.quantize.embedding.weight",
        ];
        let vars = names.map(|name| variable(&model, name));
        let tokenizer = model.image_tokenizer().unwrap();
        let loss = |quantized: bool| -> Reconstruction { tokenizer.reconstruct(&pass, &pixels, quantized).unwrap() };
        let uneven = |x: &Tensor| (x * drawn(x.dims(), 9)).unwrap().sum_all().unwrap();
        let of_pixels = uneven(&loss(true).pixels).backward().unwrap();
        for var in &vars[..3] {
            let gradient: Vec<f32> = of_pixels.get(var).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let largest = (0..gradient.len()).max_by(|a, b| gradient[*a].abs().total_cmp(&gradient[*b].abs())).unwrap();
            let start = var.as_detached_tensor().copy().unwrap();
            let at = |shift: f32| {
                let mut values: Vec<f32> = start.flatten_all().unwrap().to_vec1().unwrap();
                values[largest] += shift;
                var.set(&Tensor::from_vec(values, start.dims(), &Device::Cpu).unwrap()).unwrap();
                number(&uneven(&loss(true).pixels))
            };
            let difference = (at(1e-2) - at(-1e-2)) / 2e-2;
            var.set(&start).unwrap();
            let got = f64::from(gradient[largest]);
            assert!((got - difference).abs() < 0.02 * difference.abs() + 1e-3, "{got}, by differences {difference}");
        }
        assert!(of_pixels.get(&vars[3]).is_some(), "the encoder learns from the pixels");
        assert!(of_pixels.get(&vars[4]).is_none(), "the codebook does not");
        let commitment = loss(true).commitment.backward().unwrap();
        assert!(commitment.get(&vars[3]).is_some() && commitment.get(&vars[4]).is_none());
        let codebook = loss(true).codebook.backward().unwrap();
        assert!(codebook.get(&vars[3]).is_none() && codebook.get(&vars[4]).is_some());
    }

    #[test]
    fn composed_the_whole_way_is_the_same_forward_and_backward() {
        let (model, pass) = (model(), Pass::inference());
        let pixels = drawn(&[1, 3, 32, 32], 2);
        let vars = ["model.vqmodel.encoder.conv_in.weight", "model.vqmodel.encoder.mid.attn_1.q.weight"]
            .map(|name| variable(&model, name));
        let run = || {
            let again = model.image_tokenizer().unwrap().reconstruct(&pass, &pixels, true).unwrap();
            let loss = (again.pixels.sqr().unwrap().mean_all().unwrap() + again.commitment).unwrap();
            let gradients = loss.backward().unwrap();
            let of = |var: &Var| gradients.get(var).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            (number(&loss), vars.each_ref().map(of))
        };
        let ((fast, fast_gradients), (slow, slow_gradients)) = (run(), with_composed(run));
        assert!((fast - slow).abs() < 1e-4 * slow.abs(), "{fast} {slow}");
        for (fast, slow) in fast_gradients.iter().zip(&slow_gradients) {
            let largest = slow.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            assert!(largest > 0.0 && fast.iter().zip(slow).all(|(a, b)| (a - b).abs() < 1e-2 * largest), "{largest}");
        }
    }
}
