//! Matrix products with frozen weights and attention, at the sizes of Janus-Pro-1B: GFLOP/s, and the share of a peak.
//!
//! `cargo bench --workspace --bench products`, with a part of a name after `--` to run only what has it, such as
//! `-- bf16/forward`. The peak is measured first: a loop on registers alone of the widest instruction that multiplies and adds
//! values of the type; where the processor has none of those known here, the best product of the run stands in.
#![allow(clippy::print_stdout, reason = "a benchmark prints its results")]

use std::cell::RefCell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Result, Tensor, Var};
use criterion::{Criterion, Throughput};
use janus_core::noise;
use janus_core::ops::Weight;
use janus_core::ops::{AttentionMask, attention};

/// Rows of the input, its width, and the width of the result: `x[rows, input] · W[output, input]ᵀ`.
const PRODUCTS: &[[usize; 3]] =
    &[[640, 2048, 2048], [640, 2048, 5632], [640, 5632, 2048], [64, 2048, 102_400], [8, 2048, 5632], [1, 2048, 5632]];
/// Products of `[tokens, head_dim]` matrices that attention and its gradient consist of: scores and output; scores again,
/// and the gradients of values, probabilities, queries and keys.
const ATTENTION_PRODUCTS: [u64; 2] = [2, 5];

/// What was measured, in the order of the run: name, floating point operations, seconds of the best sample.
#[derive(Default)]
struct Rates(RefCell<Vec<(String, u64, f64)>>);

impl Rates {
    /// Runs `routine` under criterion and keeps its best sample. Nothing is set up unless its name was asked for.
    fn measure<R>(
        &self,
        criterion: &mut Criterion,
        name: &str,
        flop: u64,
        setup: impl Fn() -> Result<R>,
        routine: impl Fn(&R) -> Result<Tensor>,
    ) {
        let mut group = criterion.benchmark_group("products");
        group.throughput(Throughput::Elements(flop));
        group.bench_function(name, |bencher| {
            let input = setup().expect("made-up tensors fit each other");
            bencher.iter_custom(|iterations| {
                let clock = Instant::now();
                for _ in 0..iterations {
                    black_box(routine(&input).expect("made-up tensors fit each other"));
                }
                let elapsed = clock.elapsed();
                self.keep(name, flop, elapsed.as_secs_f64() / iterations.max(1) as f64);
                elapsed
            });
        });
        group.finish();
    }

    fn keep(&self, name: &str, flop: u64, seconds: f64) {
        let mut rates = self.0.borrow_mut();
        match rates.iter_mut().find(|(known, ..)| known == name) {
            Some((_, _, best)) => *best = best.min(seconds),
            None => rates.push((name.to_owned(), flop, seconds)),
        }
    }

    fn table(&self, peak: &dyn Fn(&str) -> Option<f64>) -> String {
        let rates = self.0.borrow();
        let gflops = |flop: u64, seconds: f64| flop as f64 / seconds / 1e9;
        let best = rates.iter().map(|(_, flop, seconds)| gflops(*flop, *seconds)).fold(0.0, f64::max);
        let line = |(name, flop, seconds): &(String, u64, f64)| {
            let rate = gflops(*flop, *seconds);
            format!("| {name} | {rate:.1} | {:.1} % |", 100.0 * rate / peak(name).unwrap_or(best))
        };
        let mut lines = vec!["| product | GFLOP/s | of the peak |".to_owned(), "| --- | ---: | ---: |".to_owned()];
        lines.extend(rates.iter().map(line));
        lines.join("\n")
    }
}

/// What all threads together multiply and add on registers alone, in GFLOP/s: bf16 and f32, where it can be told.
#[cfg(target_arch = "x86_64")]
mod register {
    use std::arch::x86_64::*;
    use std::hint::black_box;
    use std::time::Instant;

    /// Sums that are independent of each other: more than the instruction's latency in cycles, few enough for the registers.
    const SUMS: usize = 12;
    const ROUNDS: usize = 4_000_000;

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn paired() -> f32 {
        let value = _mm512_set1_epi32(black_box(0x3f80_3f80));
        // SAFETY: both types are 64 bytes of any bits.
        let value = unsafe { std::mem::transmute::<__m512i, __m512bh>(value) };
        let mut sums = [_mm512_setzero_ps(); SUMS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, value, value);
            }
        }
        sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
    }

    #[target_feature(enable = "avx2,fma")]
    fn half() -> f32 {
        let value = _mm256_set1_ps(black_box(1.0));
        let mut sums = [_mm256_setzero_ps(); SUMS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(value, value, *sum);
            }
        }
        sums.into_iter().map(|sum| _mm256_cvtss_f32(sum)).sum()
    }

    #[target_feature(enable = "avx512f")]
    fn single() -> f32 {
        let value = _mm512_set1_ps(black_box(1.0));
        let mut sums = [_mm512_setzero_ps(); SUMS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(value, value, *sum);
            }
        }
        sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
    }

    /// The best of five runs on all threads; `flop` are those of one instruction.
    fn rate(flop: usize, run: fn() -> f32) -> f64 {
        let threads = rayon::current_num_threads();
        let seconds = (0..5).map(|_| {
            let clock = Instant::now();
            rayon::broadcast(|_| black_box(run()));
            clock.elapsed().as_secs_f64()
        });
        (threads * ROUNDS * SUMS * flop) as f64 / seconds.fold(f64::INFINITY, f64::min) / 1e9
    }

    /// Without a bf16 dot product bf16 values are multiplied as f32.
    pub(super) fn peaks() -> (Option<f64>, Option<f64>) {
        let wide = is_x86_feature_detected!("avx512f");
        let narrow = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        // SAFETY: the processor has the instructions where they are asked for.
        let (paired, single, half) = (|| unsafe { paired() }, || unsafe { single() }, || unsafe { half() });
        let f32 = if wide { Some(rate(32, single)) } else { narrow.then(|| rate(16, half)) };
        let bf16 = if wide && is_x86_feature_detected!("avx512bf16") { Some(rate(64, paired)) } else { f32 };
        (bf16, f32)
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod register {
    pub(super) fn peaks() -> (Option<f64>, Option<f64>) {
        (None, None)
    }
}

fn tensor(seed: u64, shape: &[usize], dtype: DType) -> Result<Tensor> {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count as u64).map(|i| (noise::mix(seed ^ i) >> 40) as f32 / 1e7 - 0.8).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)
}

fn frozen(values: &Tensor) -> Weight {
    values.clone().into()
}

fn products(criterion: &mut Criterion, rates: &Rates, dtype: DType) {
    for &[rows, input, output] in PRODUCTS {
        let flop = 2 * (rows * input * output) as u64;
        let name = |direction: &str| format!("{}/{direction}/{rows}x{input}x{output}", dtype.as_str());
        let forward = || Ok((tensor(1, &[rows, input], dtype)?, tensor(2, &[output, input], dtype)?));
        rates.measure(criterion, &name("forward"), flop, forward, |(x, weight)| frozen(weight).product(x, None));
        let backward = || Ok((tensor(1, &[rows, output], dtype)?, tensor(2, &[output, input], dtype)?));
        rates.measure(criterion, &name("backward"), flop, backward, |(dy, weight)| frozen(weight).input_gradient(dy));
    }
}

/// The gradient of the sum of `y`: one pass the other way, without the pass that made `y`.
fn gradient(y: &Tensor, x: &Var) -> Result<Tensor> {
    let mut gradients = y.backward()?;
    gradients.remove(x).ok_or_else(|| candle_core::Error::Msg("the graph is cut".into()))
}

/// The decoder's over 640 tokens, each of which sees what stands before it, and the vision tower's over 576 patches.
fn attentions(criterion: &mut Criterion, rates: &Rates, dtype: DType) {
    for (part, tokens, heads, head_dim, mask) in
        [("decoder", 640, 16, 128, AttentionMask::causal()), ("vision", 576, 16, 64, AttentionMask::full())]
    {
        let shape = [1, tokens, heads, head_dim];
        let [forward, backward] = ATTENTION_PRODUCTS.map(|products| {
            let whole = products * 2 * (tokens * tokens * heads * head_dim) as u64;
            if mask.causal { whole / 2 } else { whole }
        });
        let name = |direction: &str| format!("{}/{direction}/attention-{part}", dtype.as_str());
        let inputs = || Ok([tensor(1, &shape, dtype)?, tensor(2, &shape, dtype)?, tensor(3, &shape, dtype)?]);
        rates.measure(criterion, &name("forward"), forward, inputs, |[q, k, v]| attention(q, k, v, &mask));
        let output = || {
            let [q, k, v] = inputs()?;
            let (q, k, v) = (Var::from_tensor(&q)?, Var::from_tensor(&k)?, Var::from_tensor(&v)?);
            let y = attention(&q, &k, &v, &mask)?;
            Ok((q, y))
        };
        rates.measure(criterion, &name("backward"), backward, output, |(q, y)| gradient(y, q));
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    let rates = Rates::default();
    let (bf16, f32) = register::peaks();
    for dtype in [DType::BF16, DType::F32] {
        products(&mut criterion, &rates, dtype);
        attentions(&mut criterion, &rates, dtype);
    }
    criterion.final_summary();
    let told = |peak: Option<f64>| peak.map_or("unknown".to_owned(), |peak| format!("{peak:.0} GFLOP/s"));
    println!("peak on registers: bf16 {}, f32 {}", told(bf16), told(f32));
    println!("{}", rates.table(&|name| if name.contains("bf16") { bf16 } else { f32 }));
}
