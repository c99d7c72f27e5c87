//! What several commands are given in the same words.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use clap::{Args, ValueEnum};
use janus_core::hub::RepoId;
use janus_core::input::read_named;
use janus_core::processing::{Decoding, Orientation, clipped_grey, is_grey_16, is_turned};
use janus_core::{DeviceChoice, Janus, Parts};

use crate::adapter::{self, Adapter};
use crate::base::Base;
use crate::data::EncodedImage;
use crate::error::{Error, Result};
use crate::heads::Heads;
use crate::status::Status;
use crate::train::readings::Reading;

/// Longest file that is read as a picture: the pixels of the largest one that is decoded, in 16 bits with alpha, take half.
const MAX_PICTURE_BYTES: u64 = 1 << 30;

/// A base and the adapters over it.
#[derive(Debug, Args)]
pub(super) struct BaseArguments {
    /// Base: `janus-nano` (built in), a folder, a hub id such as `deepseek-ai/Janus-Pro-1B`, or `init:SHAPE?seed=N`; may be left
    /// out where an adapter names one that is there
    #[arg(long)]
    pub(super) base: Option<String>,
    /// Adapter folder or hub id, with a factor on all that it changes after a colon; several add up
    #[arg(long = "adapter", value_name = "DIR[:SCALE]")]
    pub(super) adapters: Vec<String>,
}

impl BaseArguments {
    /// The base and its adapters, checked against each other.
    pub(super) fn open(&self, status: &dyn Status) -> Result<(Base, Vec<(Adapter, f64)>)> {
        let found = self.adapters.iter().map(|text| locate(text, status)).collect::<Result<Vec<_>>>()?;
        let folders: Vec<&Path> = found.iter().map(|(folder, _)| folder.as_path()).collect();
        let base = open_base(self.base.as_deref(), &folders, status)?;
        let read =
            |(folder, factor): &(PathBuf, f64)| Ok((read_adapter_folder(folder, *factor, &base, status)?, *factor));
        let adapters = found.iter().map(read).collect::<Result<Vec<_>>>()?;
        Ok((base, adapters))
    }
}

/// The base that was given, else the one that an adapter names, if it is there without a download.
pub(super) fn open_base(given: Option<&str>, adapters: &[&Path], status: &dyn Status) -> Result<Base> {
    if let Some(spec) = given {
        return Base::open(spec, status);
    }
    let mut absent = None;
    for folder in adapters {
        for name in adapter::base_names(folder)? {
            if let Some(base) = Base::open_present(&name, status)? {
                status.note(&format!("base `{}`, as `{}` names it", readable_name(&name), folder.display()));
                return Ok(base);
            }
            absent.get_or_insert((*folder, name));
        }
    }
    let (message, hint) = match absent {
        None if adapters.is_empty() => {
            ("no base is given".to_owned(), "give `--base`: `janus-nano`, a folder or a hub id".to_owned())
        }
        None => {
            let message = "no base is given, and no adapter names one".to_owned();
            (message, "give `--base`: `janus-nano`, a folder or a hub id such as `deepseek-ai/Janus-Pro-1B`".to_owned())
        }
        Some((folder, name)) => {
            let name = readable_name(&name);
            let message = format!("no base is given, and `{name}`, which `{}` names, is not here", folder.display());
            let fetch = name.parse::<RepoId>().is_ok().then(|| format!("`janus base fetch {name}` brings it; or "));
            (message, format!("{}give `--base`", fetch.unwrap_or_default()))
        }
    };
    Err(Error::Usage { message, hint })
}

/// A name out of a file, fit to be shown.
fn readable_name(name: &str) -> String {
    const LONGEST: usize = 200;
    let shown: String = name.chars().take(LONGEST).collect();
    let cut = if name.chars().nth(LONGEST).is_some() { "…" } else { "" };
    format!("{}{cut}", crate::visible::one_line(&shown))
}

/// The adapter folder that an argument `DIR[:SCALE]` means, and the factor in it.
pub(super) fn locate(text: &str, status: &dyn Status) -> Result<(PathBuf, f64)> {
    let (path, factor) = adapter::parse_argument(text)?;
    Ok((adapter::locate(&path, status.download().as_ref())?, factor))
}

/// Reads an adapter given as `DIR[:SCALE]` and checks that it belongs to the base.
pub(super) fn read_adapter(text: &str, base: &Base, status: &dyn Status) -> Result<(Adapter, f64)> {
    let (folder, factor) = locate(text, status)?;
    Ok((read_adapter_folder(&folder, factor, base, status)?, factor))
}

/// Reads an adapter and checks that it belongs to the base; warns where files ask for something in vain, and where nothing of
/// it, with this factor, changes what the base computes.
pub(super) fn read_adapter_folder(folder: &Path, factor: f64, base: &Base, status: &dyn Status) -> Result<Adapter> {
    let adapter = Adapter::read_for(base, folder, status)?;
    if !adapter.changes(factor, &|name| Ok(base.checkpoint().read(name, DType::F32)?))? {
        let why = match factor {
            0.0 => "its factor is 0",
            _ if adapter.saved.is_empty() => "every product B·A is zero, as before training",
            _ => "every product B·A is zero and every copy equals the base, as before training",
        };
        let heads = if adapter.heads.is_empty() { "" } else { "; its heads are used" };
        status.warn(&format!("`{}` does nothing to the base: {why}{heads}", folder.display()));
    }
    Ok(adapter)
}

/// Lets the model compute with the adapters; their heads.
pub(super) fn attach(model: &Janus, adapters: &[(Adapter, f64)]) -> Result<Heads> {
    let adapters: Vec<(&Adapter, f64)> = adapters.iter().map(|(adapter, scale)| (adapter, *scale)).collect();
    adapter::attach(model, &adapters)?;
    Ok(adapter::heads(&adapters, model.device())?)
}

/// How pictures are read.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct PictureArguments {
    /// Which way up pictures are read that carry an EXIF orientation [default: upright]
    #[arg(long, value_name = "WAY", value_enum)]
    orientation: Option<OrientationArgument>,
    /// Bits that 16-bit grey pictures use: 2^N - 1 becomes white [default: as an adapter was trained, else everything above 255
    /// becomes white]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(8..=16))]
    grey_bits: Option<u8>,
}

/// Which way up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OrientationArgument {
    /// As they are meant to be seen
    Upright,
    /// As they are stored
    Stored,
}

impl PictureArguments {
    /// How pictures are read.
    pub(super) fn decoding(&self) -> Decoding {
        let orientation = match self.orientation {
            None | Some(OrientationArgument::Upright) => Orientation::Upright,
            Some(OrientationArgument::Stored) => Orientation::Stored,
        };
        Decoding { orientation, grey_bits: self.grey_bits }
    }

    /// The first of its options that is given.
    pub(super) fn given(&self) -> Option<&'static str> {
        self.orientation.map(|_| "--orientation").or(self.grey_bits.map(|_| "--grey-bits"))
    }

    /// Settles how the pictures of a table are read, as [`PictureArguments::settle`] does of pictures at hand: 16-bit grey is scaled
    /// as in the training of an adapter, where `--grey-bits` does not say otherwise and adapters agree.
    pub(super) fn settle_decoding(
        &self,
        decoding: &mut Decoding,
        adapters: &[(Adapter, f64)],
        task: &str,
        status: &dyn Status,
    ) {
        let readings: Vec<Reading> = adapters.iter().flat_map(|(adapter, _)| readings_of(adapter, &[task])).collect();
        let bits: BTreeSet<u8> = readings.iter().filter_map(|reading| reading.grey_bits).collect();
        if let (None, 1, Some(bits)) = (self.grey_bits, bits.len(), bits.first()) {
            decoding.grey_bits = Some(*bits);
            status.note(&format!("16-bit grey is scaled as in the training of an adapter (`--grey-bits {bits}`)"));
        }
        if self.orientation.is_none() && !readings.is_empty() && readings.iter().all(|reading| reading.is_stored) {
            status.warn(
                "pictures are turned upright as their EXIF says, and the adapter was trained on pictures as they are stored: \
                 `--orientation stored` reads them so, `--orientation upright` says that this is meant",
            );
        }
    }

    /// A picture file.
    pub(super) fn read(&self, path: &Path) -> Result<EncodedImage> {
        let bytes = read_named(path, MAX_PICTURE_BYTES).map_err(|e| Error::Usage {
            message: match std::error::Error::source(&e) {
                Some(source) => format!("cannot read the image: {e}: {source}"),
                None => format!("cannot read the image: {e}"),
            },
            hint: "give the path of a png, jpeg, webp, bmp, gif or tiff file".into(),
        })?;
        Ok(EncodedImage { bytes, decoding: self.decoding() })
    }

    /// Settles how pictures are read that an adapter has something to say about: 16-bit grey is scaled as in its training, where
    /// `--grey-bits` does not say otherwise. Warns where shades are lost, and where pictures lie otherwise than in training.
    /// `asked` are the tasks of whose tables that is; of others only where an adapter has none of these.
    pub(super) fn settle(
        &self,
        pictures: &mut [EncodedImage],
        adapters: &[(Adapter, f64)],
        asked: &[&str],
        status: &dyn Status,
    ) {
        let readings: Vec<Vec<Reading>> = adapters.iter().map(|(adapter, _)| readings_of(adapter, asked)).collect();
        if self.grey_bits.is_none() {
            settle_grey(pictures, &readings.concat(), status);
        }
        let is_stored = |all: &Vec<Reading>| !all.is_empty() && all.iter().all(|reading| reading.is_stored);
        let turned = || pictures.iter().any(|picture| is_turned(&picture.bytes));
        if self.orientation.is_none() && readings.iter().any(is_stored) && turned() {
            status.warn(
                "a picture is turned upright as its EXIF says, and an adapter was trained on pictures as they are stored: \
                 `--orientation stored` reads it so, `--orientation upright` says that this is meant",
            );
        }
    }
}

/// How an adapter's tables of some tasks were read in training; of all its tables where it has none of these.
fn readings_of(adapter: &Adapter, tasks: &[&str]) -> Vec<Reading> {
    let recipe = adapter.note.as_ref().and_then(|note| note.recipe.as_deref()).unwrap_or_default();
    let all = Reading::all(recipe);
    let of_task: Vec<Reading> = all.iter().filter(|reading| tasks.contains(&&*reading.task)).cloned().collect();
    if of_task.is_empty() { all } else { of_task }
}

/// Lets 16-bit grey be scaled by the bits that adapters were trained with, and says what becomes of such pictures.
fn settle_grey(pictures: &mut [EncodedImage], readings: &[Reading], status: &dyn Status) {
    let recorded: BTreeSet<u8> = readings.iter().filter_map(|reading| reading.grey_bits).collect();
    let mut recorded = recorded.into_iter();
    let (bits, other) = (recorded.next(), recorded.next());
    if let (Some(bits), None) = (bits, other) {
        pictures.iter_mut().for_each(|picture| picture.decoding.grey_bits = Some(bits));
        if pictures.iter().any(|picture| is_grey_16(&picture.bytes)) {
            status.note(&format!(
                "16-bit grey is scaled as in the training of an adapter (`--grey-bits {bits}`); another number reads it otherwise"
            ));
        }
        return;
    }
    let greatest = pictures.iter().filter_map(|picture| clipped_grey(&picture.bytes, picture.decoding).ok()?).max();
    let Some(greatest) = greatest else { return };
    let lost = format!("a 16-bit grey picture has values up to {greatest}, and everything above 255 becomes white");
    let own_bits = u16::BITS - greatest.leading_zeros();
    status.warn(&match (bits, other) {
        (Some(one), Some(other)) => {
            let table = |bits| readings.iter().find(|r| r.grey_bits == Some(bits)).map_or("", |r| r.table.as_str());
            let (first, second) = (readable_name(table(one)), readable_name(table(other)));
            format!("{lost}: adapters were trained otherwise, on `{first}` with `--grey-bits {one}`, on `{second}` with `--grey-bits {other}`")
        }
        _ if readings.is_empty() => format!("{lost}: `--grey-bits {own_bits}` scales them"),
        _ => format!("{lost}, as in the training of the adapter: `--grey-bits` scales them, which it has not seen"),
    });
}

/// Where to compute.
#[derive(Debug, Args)]
pub(super) struct DeviceArgument {
    /// cpu, cuda, cuda:N, metal, or auto: the GPU this program was built for, where there is one
    #[arg(long, value_name = "DEVICE", default_value_t)]
    pub(super) device: DeviceChoice,
}

impl DeviceArgument {
    /// Whether a driver may be asked for it.
    pub(super) fn may_be_gpu(&self) -> bool {
        self.device != DeviceChoice::Cpu && cfg!(any(feature = "cuda", feature = "metal", janus_stand_in))
    }

    /// The device, or why there is none: asked for before anything else, so that it is told at once.
    pub(super) fn open(&self) -> Result<Device> {
        Ok(self.device.open()?)
    }
}

/// How a base is computed.
#[derive(Debug, Args)]
pub(super) struct TypeArgument {
    /// What the frozen weights are computed in: f32 or bf16; by default bf16 where they are stored in 16 bits
    #[arg(long, value_name = "TYPE", value_parser = parse_dtype)]
    pub(super) dtype: Option<DType>,
}

impl TypeArgument {
    /// The model with its adapters attached, and their heads.
    pub(super) fn model(
        &self,
        base: &Base,
        adapters: &[(Adapter, f64)],
        device: &Device,
        parts: Parts,
        status: &dyn Status,
    ) -> Result<(Janus, Heads)> {
        let stored = base.checkpoint().stored_dtype();
        let dtype = self.dtype.unwrap_or(if stored == DType::F32 { DType::F32 } else { DType::BF16 });
        if dtype == DType::F16 {
            let message = "weights are computed in f32 or bf16, not in f16".to_owned();
            return Err(Error::Usage { message, hint: "leave `--dtype` out, or give f32 or bf16".into() });
        }
        let model = base.model(dtype, device, parts, status)?;
        let heads = attach(&model, adapters)?;
        Ok((model, heads))
    }
}

/// `f32`, `bf16` or `f16`.
pub(super) fn parse_dtype(text: &str) -> std::result::Result<DType, String> {
    match text {
        "f32" => Ok(DType::F32),
        "bf16" => Ok(DType::BF16),
        "f16" => Ok(DType::F16),
        other => Err(format!("`{other}` is none of f32, bf16, f16")),
    }
}
