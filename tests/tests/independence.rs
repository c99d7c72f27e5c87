//! A request's answer does not depend on its neighbours: every logit over janus-nano under random schedules of requests that come,
//! go on beside others and are given up, each bit as alone.
//!
//! `JANUS_SCHEDULES` says how many schedules of each type are run; a few where it says nothing.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use janus_core::noise;
use janus_core::pass::Mixture;
use janus_core::sample::RowLogits;
use janus_core::{Janus, Parts};
use janus_lora::adapter::{Adapter, AdapterSpec, Method, ModuleNames};
use janus_lora::base::Base;
use janus_lora::cache::Image;
use janus_lora::heads::{HeadKind, Heads};
use janus_lora::infer::{
    Answer, Engine, Event, HeadRequest, Kind, Limits, PictureRequest, Request, RequestId, TextRequest,
};
use janus_lora::status::Silent;
use janus_lora::tasks::caption_ids;
use janus_lora::train::trainable::Trainables;
use janus_tests::base::device;

/// Small numbers out of a seed.
struct Draw(u64, u64);

impl Draw {
    fn below(&mut self, count: usize) -> usize {
        self.1 += 1;
        (noise::mix(noise::combine(self.0, self.1)) % count as u64) as usize
    }
}

fn drawn(shape: &[usize], name: &str) -> Tensor {
    let count = shape.iter().product::<usize>() as u64;
    let values: Vec<f32> = (0..count).map(|i| noise::normal(noise::key_of(name), i) as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Adapters of several methods, none of whose values is as it began, one of them with two heads and one with a copy.
fn adapters(base: &Base, dtype: DType) -> Vec<Adapter> {
    let linear = ["self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"];
    let decoder = linear.iter().map(|name| format!("model.language_model.layers.1.{name}"));
    let more = [
        "model.vision_model.encoder.layers.0.mlp.fc1",
        "model.aligner.fc1",
        "lm_head",
        "model.generation_aligner.fc1",
        "model.generation_head.proj_out",
    ];
    let sites: Vec<Arc<str>> = decoder.chain(more.map(str::to_owned)).map(Arc::from).collect();
    let spec =
        |method| AdapterSpec { method, rank: 3, alpha: 3.0, dtype, sites: sites.clone(), ..AdapterSpec::default() };
    let lokr = Method::Lokr { decompose_both: false, decompose_factor: -1, effective: false };
    let ia3 = Method::Ia3 { feedforward: ModuleNames::Suffixes(vec!["down_proj".into(), "fc1".into()]) };
    let labels = vec!["pit".to_owned(), "ring".to_owned(), "stain".to_owned()];
    let heads = vec![
        ("marks".to_owned(), HeadKind::Locate { labels: labels.clone() }),
        ("names".to_owned(), HeadKind::Classify { labels }),
        ("areas".to_owned(), HeadKind::Segment {}),
        ("pairs".to_owned(), HeadKind::Retrieve {}),
    ];
    let specs = [
        AdapterSpec { heads, ..spec(Method::Lora { bias: false }) },
        spec(Method::Dora),
        spec(lokr),
        spec(ia3),
        AdapterSpec { modules_to_save: vec!["language_model.norm".into()], ..spec(Method::Loha { effective: false }) },
    ];
    let read = |name: &str| Ok(base.checkpoint().read(name, DType::F32)?);
    specs
        .into_iter()
        .map(|spec| {
            let adapter = Adapter::new(base.config(), base.checkpoint().is_tied(), &spec, 7, &read).unwrap();
            let model = base.model(dtype, &Device::Cpu, Parts::all(), &Silent).unwrap();
            let trainables = Trainables::attach(&model, adapter).unwrap();
            for trainable in trainables.iter() {
                let noise = drawn(trainable.var.dims(), &trainable.name);
                trainable.var.set(&((noise * 0.1).unwrap() + trainable.var.as_tensor()).unwrap()).unwrap();
            }
            trainables.adapter().unwrap()
        })
        .collect()
}

/// A number for all the bits of a row's logits at each of its steps.
type Bits = Vec<u64>;

fn bits(logits: &RowLogits<'_>) -> u64 {
    let all = [Some(logits.conditional), logits.unconditional, Some(logits.guided)];
    all.into_iter().flatten().fold(0, |sum, tensor| {
        let values = tensor.to_device(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values.iter().fold(sum, |sum, value| noise::combine(sum, u64::from(value.to_bits())))
    })
}

/// What became of requests: the logits of those that draw, and the answers, in a form that shows every bit.
#[derive(Default)]
struct Outcome {
    logits: BTreeMap<RequestId, Bits>,
    answers: BTreeMap<RequestId, String>,
}

impl Outcome {
    fn step(&mut self, engine: &mut Engine<'_>) {
        let logits = &mut self.logits;
        let events = engine
            .step_seen(&mut |request, own| {
                let all = logits.entry(request).or_default();
                assert_eq!(all.len(), own.step);
                all.push(bits(&own));
            })
            .unwrap();
        for event in events {
            if let Event::Ended { request, answer } = event {
                let answer = match answer.unwrap() {
                    Answer::Text(text) => format!("{text:?}"),
                    Answer::Picture(picture) => format!("{:?} {:?}", picture.codes, picture.picture.as_raw()),
                    Answer::Head(head) => format!("{head:?}"),
                };
                self.answers.insert(request, answer);
            }
        }
    }
}

/// Requests of every kind, whose prompts share beginnings, with every adapter and with sums of some.
fn requests(base: &Base, mixtures: &[Mixture]) -> Vec<Request> {
    let side = base.config().vision.image_size;
    let pixels = |name: &str| Image::from_pixels(drawn(&[3, side, side], name));
    let images = [pixels("first"), pixels("second")];
    let frame = base.images().frame(90, 70);
    let mut all = Vec::new();
    for (number, mixture) in mixtures.iter().enumerate() {
        let image = &images[number % 2];
        let temperature = if number % 2 == 0 { 0.8 } else { 0.0 };
        let question = ["What is there?", "What is there, and is it whole?", "Name it."][number % 3];
        let prompt = base.prompts().understanding_prompt(question, 1, true).unwrap();
        let text = |prompt, images, max_new_tokens| {
            Kind::Text(TextRequest { prompt, images, max_new_tokens, temperature, seed: number as u64 })
        };
        let plain = base.prompts().understanding_prompt(question, 0, true).unwrap();
        let mut options = base.drawing(number as u64);
        options.guidance = [5.0, 1.0, 2.5][number % 3];
        options.temperature = temperature;
        let drawing = base.prompts().generation_prompt("a red ring on wood").unwrap();
        let edit = base.prompts().edit_prompt("Make it blue.", 1).unwrap();
        let picture = |prompt, images| Kind::Picture(PictureRequest { prompt, images, options });
        let mut kinds = vec![text(prompt, vec![image.clone()], 9 + number), text(plain, Vec::new(), 5)];
        kinds.push(if number % 2 == 0 { picture(drawing, Vec::new()) } else { picture(edit, vec![image.clone()]) });
        if number == 0 {
            for head in ["marks", "names", "areas", "pairs"] {
                let captions = ["a pit", "a ring of wood"].map(|text| caption_ids(base, text).unwrap());
                let captions = if head == "pairs" { captions.to_vec() } else { Vec::new() };
                kinds.push(Kind::Head(HeadRequest { head: head.into(), image: image.clone(), frame, captions }));
            }
        }
        all.extend(kinds.into_iter().map(|kind| Request { kind, adapters: mixture.clone() }));
    }
    all
}

/// An engine with all adapters in its bank, and what requests may name of them.
fn engine<'m>(model: &'m Janus, base: &'m Base, adapters: &[Adapter], limits: Limits) -> (Engine<'m>, Vec<Mixture>) {
    let mut engine = Engine::with_bank(model, base, limits);
    let slots: Vec<_> = adapters.iter().map(|adapter| engine.load(adapter).unwrap()).collect();
    let mut mixtures: Vec<Mixture> = slots.iter().map(|slot| Mixture::of(*slot)).collect();
    mixtures.push(Mixture::base());
    mixtures.push(Mixture::new([(slots[0], 0.7), (slots[1], -0.5)]));
    mixtures.push(Mixture::new([(slots[2], 1.0), (slots[3], 0.25)]));
    (engine, mixtures)
}

fn limits() -> Limits {
    // Room for about six rows, so that others wait.
    Limits { rows: 8, cache_tokens: 1200, prompt_tokens: 600 }
}

/// Runs one schedule; each request that drew has the logits that it has alone, as far as it came.
fn run(seed: u64, model: &Janus, base: &Base, adapters: &[Adapter], alone: &[(Bits, String)]) -> usize {
    let mut draw = Draw(seed, 0);
    let (mut engine, mixtures) = engine(model, base, adapters, limits());
    let pool = requests(base, &mixtures);
    let mut coming: Vec<usize> = (0..3 + draw.below(8)).map(|_| draw.below(pool.len())).collect();
    let mut submitted: BTreeMap<RequestId, usize> = BTreeMap::new();
    let mut given_up = Vec::new();
    let mut outcome = Outcome::default();
    while !coming.is_empty() || engine.pending() > 0 {
        while !coming.is_empty() && (engine.pending() == 0 || draw.below(4) == 0) {
            let number = coming.pop().unwrap();
            submitted.insert(engine.submit(pool[number].clone()).unwrap(), number);
        }
        if draw.below(40) == 0 {
            let ids: Vec<RequestId> = submitted.keys().copied().collect();
            let id = ids[draw.below(ids.len())];
            if engine.cancel(id) {
                given_up.push(id);
            }
        }
        outcome.step(&mut engine);
        assert!(engine.reserved_tokens() <= limits().cache_tokens);
    }
    let mut compared = 0;
    for (id, number) in submitted {
        let (bits, answer) = &alone[number];
        let own = outcome.logits.remove(&id).unwrap_or_default();
        let other = own.iter().zip(bits).position(|(own, alone)| own != alone);
        assert_eq!(other, None, "schedule {seed}, request {number}: the first step whose logits are others");
        assert!(own.len() <= bits.len());
        compared += own.len();
        match outcome.answers.get(&id) {
            Some(own) => assert_eq!(own, answer, "schedule {seed}, request {number}"),
            None => assert!(given_up.contains(&id), "schedule {seed}: request {number} is lost"),
        }
    }
    compared
}

fn schedules() -> u64 {
    std::env::var("JANUS_SCHEDULES").map_or(4, |count| count.parse().unwrap())
}

fn every_schedule_in(dtype: DType) {
    let base = Base::open("janus-nano", &Silent).unwrap();
    let model = base.model(dtype, &device(), Parts::all(), &Silent).unwrap();
    let adapters = adapters(&base, dtype);
    let (mut engine, mixtures) = engine(&model, &base, &adapters, limits());
    let alone: Vec<(Bits, String)> = requests(&base, &mixtures)
        .into_iter()
        .map(|request| {
            let mut outcome = Outcome::default();
            let id = engine.submit(request).unwrap();
            while engine.pending() > 0 {
                outcome.step(&mut engine);
            }
            (outcome.logits.remove(&id).unwrap_or_default(), outcome.answers.remove(&id).unwrap())
        })
        .collect();
    drop(engine);
    let different: std::collections::BTreeSet<&Bits> = alone.iter().map(|(bits, _)| bits).collect();
    assert!(different.len() > alone.len() - 8, "adapters change what is answered");
    let mut compared = 0;
    for seed in 0..schedules() {
        let threads = 1 + seed as usize % 2;
        // The kernels compute in the pool they are called from.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        compared += pool.install(|| run(seed, &model, &base, &adapters, &alone));
    }
    assert!(compared > 10 * schedules() as usize, "{compared} steps were compared");
}

#[test]
fn answers_in_f32_are_those_alone() {
    every_schedule_in(DType::F32);
}

#[test]
fn answers_in_bf16_are_those_alone() {
    every_schedule_in(DType::BF16);
}

#[test]
fn a_hundred_requests_share_a_budget_for_ten() {
    const TEN: usize = 10;
    let base = Base::open("janus-nano", &Silent).unwrap();
    let model = base.model(DType::F32, &device(), Parts::all(), &Silent).unwrap();
    let heads = Heads::new();
    let prompt = base.prompts().understanding_prompt("What is there, and of what is it made?", 0, true).unwrap();
    let longest = prompt.len() + 60;
    let limits = Limits { rows: 64, cache_tokens: TEN * longest, prompt_tokens: 4096 };
    let mut engine = Engine::new(&model, &base, &heads, limits);
    let mut lengths = BTreeMap::new();
    for number in 0..100 {
        let max_new_tokens = 2 + number * 7 % 59;
        // At a temperature that lets few of them end early.
        let (prompt, seed) = (prompt.clone(), number as u64);
        let text = TextRequest { prompt, images: Vec::new(), max_new_tokens, temperature: 2.0, seed };
        lengths.insert(engine.submit(Request::plain(Kind::Text(text))).unwrap(), max_new_tokens);
    }
    let (mut most, mut answered) = (0, 0);
    while engine.pending() > 0 {
        for event in engine.step().unwrap() {
            if let Event::Ended { request, answer } = event {
                let text = answer.unwrap().into_text().unwrap();
                assert!(text.token_ids.len() <= lengths[&request]);
                assert_eq!(text.is_whole, text.token_ids.last() == Some(&base.tokenizer().special().eos));
                answered += 1;
            }
        }
        most = most.max(engine.reserved_tokens());
        assert!(engine.reserved_tokens() <= limits.cache_tokens);
    }
    assert_eq!((answered, engine.reserved_tokens()), (100, 0));
    assert!(most > limits.cache_tokens * 8 / 10, "{most} of {} tokens were in use at once", limits.cache_tokens);
    // One that could never fit is refused when it comes.
    let mut small = Engine::new(&model, &base, &heads, Limits { cache_tokens: prompt.len() + 10, ..limits });
    let text = TextRequest { prompt, images: Vec::new(), max_new_tokens: 20, temperature: 0.0, seed: 0 };
    let refused = small.submit(Request::plain(Kind::Text(text))).unwrap_err().to_string();
    assert!(refused.contains("keys and values"), "{refused}");
}
