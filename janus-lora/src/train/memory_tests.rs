//! Predicted memory against what is known of its parts.

use super::*;

fn load() -> TableLoad {
    TableLoad {
        is_generation: false,
        rows: 3,
        rows_per_step: 3.0,
        tokens: 70,
        mean_tokens: 70,
        labels: 20,
        images: 1,
        eval_rows: 5,
        ..TableLoad::default()
    }
}

fn memory(config: &JanusConfig) -> Memory<'_> {
    Memory {
        config,
        program_bytes: 40 << 20,
        planned_peak_bytes: 0,
        parts: Parts { text_head: true, vision: true, ..Parts::default() },
        value_bytes: 4,
        narrow: Arc::default(),
        trainable: 1000,
        beside: 0,
        rank: 5,
        sites_per_block: 7,
        vision_blocks: 0,
        trained_heads: [false; 2],
        accumulates: false,
        recompute: false,
        side_by_side: false,
        batch_size: 3,
        evaluates_between: true,
        rows_ahead: 8,
        row_threads: 1,
        repeats_tables: true,
        loads: vec![load()],
    }
}

#[test]
fn a_block_keeps_what_its_backward_reads() {
    // janus-tiny: width 48, MLP of 80, 4 heads; f32, and no width of a multiple of 2048 bytes.
    let config = JanusConfig::shape("janus-tiny").unwrap();
    let kept = memory(&config).decoder_block(70, 20);
    assert_eq!(kept, 4 * (70 * 4 * 48 + 20 * (48 + 2 * 80) + 70 * (4 + 5 * 7)));
    // Rows of whole pages lie 32 values further apart.
    let large = JanusConfig::shape("janus-pro-1b").unwrap();
    let narrow = Memory { value_bytes: 2, ..memory(&large) };
    assert_eq!(narrow.matrix(10, 2048), 2 * 10 * (2048 + 32));
    assert_eq!(narrow.matrix(10, 5632 + 1), 2 * 10 * 5633);
}

#[test]
fn passes_share_matrices_down_to_half_their_length() {
    assert_eq!(shared(vec![(10, 100), (20, 50)]), 100);
    assert_eq!(shared(vec![(9, 100), (20, 50)]), 150);
    assert_eq!(shared(vec![(4, 7), (9, 100), (20, 50), (5, 30)]), 157);
    assert_eq!(shared(Vec::new()), 0);
}

/// The published case of comparison: one row of 640 tokens, rank 8 in every map of the decoder.
#[test]
fn the_full_size_step_holds_what_its_terms_say() {
    let config = JanusConfig::shape("janus-pro-1b").unwrap();
    let row = TableLoad { rows: 1, tokens: 640, mean_tokens: 640, labels: 32, eval_rows: 0, ..load() };
    let pairs = 24 * 8 * (4 * (2048 + 2048) + 3 * (2048 + 5632));
    let step = Memory { value_bytes: 2, rank: 8, trainable: pairs, loads: vec![row], ..memory(&config) };
    let gigabytes = |memory: &Memory<'_>| memory.predicted().peak_bytes() as f64 / 1e9;
    let near = |memory: &Memory<'_>, expected: f64| {
        let got = gigabytes(memory);
        assert!((got - expected).abs() < 0.03 * expected, "{got} {expected}");
    };
    // By hand: 3.93 of weights, 0.68 kept, 0.09 of tape and head, 0.18 of pairs, 0.05 of program and rows.
    near(&step, 4.93);
    near(&Memory { recompute: true, ..step.clone() }, 4.31);
    near(&Memory { value_bytes: 4, ..step.clone() }, 9.6);
}

#[test]
fn the_parts_follow_what_holds_them() {
    let config = JanusConfig::shape("janus-pro-1b").unwrap();
    let long = TableLoad { tokens: 700, mean_tokens: 700, ..load() };
    let base = Memory { value_bytes: 2, loads: vec![long], ..memory(&config) };
    let told = base.predicted();
    assert_eq!(told.peak_bytes(), told.parts().iter().map(|(_, bytes)| bytes).sum::<u64>());
    assert_eq!((told.adapters, told.moments), (4 * 4 * 1000, 2 * 4 * 1000));
    // The published parameters in bf16 without the image tokenizer and the generation side.
    assert!((3_900_000_000..3_960_000_000).contains(&told.base), "{told:?}");
    let of = |memory: Memory<'_>| memory.predicted();
    assert_eq!(of(Memory { accumulates: true, ..base.clone() }).adapters, 5 * 4 * 1000);
    assert_eq!(of(Memory { beside: 700, ..base.clone() }).adapters, 4 * (4 * 1000 + 2 * 700));
    assert_eq!(of(Memory { value_bytes: 4, ..base.clone() }).base, 2 * told.base);
    let beside = of(Memory { accumulates: true, side_by_side: true, ..base.clone() });
    assert_eq!((beside.activations, beside.adapters), (2 * told.activations, 7 * 4 * 1000));
    let lean = of(Memory { recompute: true, ..base.clone() });
    assert!(lean.activations < told.activations / 2, "{lean:?} {told:?}");
    assert!(of(Memory { vision_blocks: 24, ..base.clone() }).activations > told.activations);
    assert!(of(Memory { trained_heads: [true, false], ..base.clone() }).activations > told.activations);
    assert_eq!(of(Memory { trained_heads: [false, true], ..base.clone() }), told);
    // Keys and values of many rows that are answered; nothing where nothing is evaluated.
    let short = Memory { batch_size: 64, loads: vec![TableLoad { eval_rows: 64, ..load() }], ..base.clone() };
    assert!(of(short.clone()).cache > 0);
    let unseen = TableLoad { eval_rows: 0, ..load() };
    assert_eq!(of(Memory { loads: vec![unseen], ..short }).cache, 0);
    // Eight pictures of 384 pixels a side wait, and a step has three; codes are all that is left of those to draw.
    let picture = 4 * 3 * 384 * 384;
    assert!(told.rows >= 11 * picture && told.rows < 12 * picture);
    let drawn = TableLoad { is_generation: true, ..load() };
    let told = of(Memory { loads: vec![drawn], ..base }).rows;
    assert!(told >= 8 * picture && told < 9 * picture);
}

#[test]
fn two_batches_at_once_are_the_two_largest() {
    let config = JanusConfig::shape("janus-nano").unwrap();
    let small = TableLoad { rows: 1, ..load() };
    let of = |loads: Vec<TableLoad>, side_by_side, repeats_tables| {
        Memory { loads, side_by_side, repeats_tables, ..memory(&config) }.predicted().activations
    };
    let alone = |load: TableLoad| of(vec![load], false, true);
    let (one, other) = (alone(load()), alone(small.clone()));
    assert!(other < one);
    assert_eq!(of(vec![small.clone(), load()], true, false), one + other);
    assert_eq!(of(vec![small.clone(), load()], true, true), 2 * one);
    // One after the other they share matrices down to half their length; here each has its own.
    let after = of(vec![small, load()], false, false);
    assert!((one..one + other).contains(&after), "{one} {other} {after}");
}

#[test]
fn rows_count_while_they_are_read_decoded_and_evaluated() {
    let config = JanusConfig::shape("janus-nano").unwrap();
    let of = |load: TableLoad| Memory { loads: vec![load], ..memory(&config) }.predicted();
    let plain = of(load());
    // A window of 50 MB has pages of 40 beside it while it is read; a picture of 36 MB is decoded when that is done.
    let wide = TableLoad {
        window_bytes: 50_000_000,
        unpacking_bytes: 40_000_000,
        decoded_bytes: 36_000_000,
        eval_rows: 0,
        reads_on: true,
        ..load()
    };
    assert_eq!(of(wide.clone()).rows, plain.rows + 50_000_000 + 40_000_000);
    let two = Memory { row_threads: 2, loads: vec![wide.clone()], ..memory(&config) };
    assert_eq!(two.predicted().rows, plain.rows + 50_000_000 + 2 * 36_000_000);
    // Steps that stay within the first window decode, and read nothing; that window was read before them.
    let within = of(TableLoad { reads_on: false, ..wide.clone() });
    assert_eq!(within.rows, plain.rows + 50_000_000 + 36_000_000);
    assert_eq!(within.cache + within.activations, (40_000_000 - 36_000_000_u64).max(within.activations));
    // What is evaluated comes beside the rows of the steps, or, where that is before and after them, instead of them.
    let evaluated = TableLoad { eval_rows: 5, eval_window_bytes: 90_000_000, eval_unpacking_bytes: 30_000_000, ..wide };
    let held = |evaluates_between| {
        let memory = Memory { evaluates_between, loads: vec![evaluated.clone()], ..memory(&config) };
        memory.predicted().cache
    };
    let told = of(evaluated.clone());
    assert_eq!(told.cache + told.activations + 40_000_000, 90_000_000 + 36_000_000);
    assert_eq!(held(true), told.cache);
    let rows = told.rows - 40_000_000;
    assert_eq!(held(false), told.cache.saturating_sub(rows));
}

#[test]
fn what_was_looked_through_before_is_the_least() {
    let config = JanusConfig::shape("janus-nano").unwrap();
    let peak = |planned_peak_bytes| Memory { planned_peak_bytes, ..memory(&config) }.predicted().peak_bytes();
    let own = peak(0);
    assert_eq!((peak(own - 1), peak(own + 1), peak(1 << 30)), (own, own + 1, 1 << 30));
}

#[test]
fn trained_heads_uneven_lengths_and_bands_cost_what_they_hold() {
    let config = JanusConfig::shape("janus-nano").unwrap();
    let told = |memory: Memory<'_>| memory.predicted().activations;
    let of = |load: TableLoad| told(Memory { loads: vec![load], ..memory(&config) });
    let plain = of(load());
    // 3 x 20 labels of 1024 classes, three times in the base's type and three times in f32, instead of what a frozen head has.
    let trained = told(Memory { trained_heads: [true, false], ..memory(&config) });
    let frozen = memory(&config).head(false, 60);
    assert_eq!(trained, plain - frozen + 60 * 1024 * 3 * (4 + 4));
    let uneven = |mean_tokens| of(TableLoad { mean_tokens, ..load() }) - plain;
    assert_eq!(uneven(70), 0);
    assert!(uneven(68) > 0 && uneven(68) < uneven(60) && uneven(60) == uneven(10), "an eighth at most");
    assert_eq!(of(TableLoad { is_rebuilt: true, ..load() }), plain + BANDS_BYTES);
}

#[test]
fn pictures_to_draw_bring_the_image_tokenizer() {
    let config = JanusConfig::shape("janus-pro-1b").unwrap();
    let drawn = Memory {
        parts: Parts { generation: true, ..Parts::default() },
        value_bytes: 2,
        loads: vec![TableLoad { is_generation: true, images: 0, eval_rows: 0, ..load() }],
        ..memory(&config)
    };
    // Four tensors of 128 channels and 384 pixels a side in f32.
    assert_eq!(drawn.evaluation(), 4 * 4 * 128 * 384 * 384);
    assert!(drawn.base_bytes() > Memory { parts: Parts::default(), ..drawn.clone() }.base_bytes());
}

#[test]
fn remedies_are_those_that_make_it_fit() {
    let config = JanusConfig::shape("janus-pro-1b").unwrap();
    let wide =
        Memory { loads: vec![TableLoad { tokens: 700, mean_tokens: 700, ..load() }], batch_size: 3, ..memory(&config) };
    let bytes = |memory: &Memory<'_>| memory.predicted().peak_bytes();
    let with_less = |room: u64| wide.remedies(&|memory: &Memory<'_>| bytes(memory) <= room);
    let recomputed = bytes(&Memory { recompute: true, ..wide.clone() });
    let told = with_less(recomputed);
    assert_eq!(told[0], format!("with train.recompute=on it takes {recomputed} bytes"));
    assert!(told.iter().any(|line| line.contains("base.dtype=bf16")), "{told:?}");
    let told = with_less(recomputed - 1);
    assert!(told.iter().all(|line| !line.starts_with("with train.recompute=on it")), "{told:?}");
    let told = with_less(1);
    assert!(told.len() == 1 && told[0].contains("a machine with more memory"), "{told:?}");
}
