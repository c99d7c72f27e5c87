//! An adapter folder: configuration, note, and weights. What is accepted is written and read again as the same tensors.
#![no_main]

use std::sync::LazyLock;

use janus_fuzz::{Scratch, parts, tiny, write_safetensors};
use janus_lora::adapter::Adapter;
use libfuzzer_sys::fuzz_target;

static GIVEN: LazyLock<Scratch> = LazyLock::new(Scratch::new);
static WRITTEN: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|data: &[u8]| {
    let [config, note, weights] = parts(data);
    GIVEN.write("adapter_config.json", config);
    GIVEN.write("janus_adapter.json", if note.is_empty() { br#"{"version":1}"# } else { note });
    write_safetensors(&GIVEN.path("adapter_model.safetensors"), weights);
    let Ok(adapter) = Adapter::read(GIVEN.folder(), &tiny(), false) else { return };
    adapter.write(WRITTEN.folder()).expect("what was read can be written");
    let again = Adapter::read(WRITTEN.folder(), &tiny(), false).expect("what was written can be read");
    assert_eq!(again.config, adapter.config);
    assert_eq!(again.note, adapter.note);
    let (before, after) = (adapter.tensors(), again.tensors());
    assert_eq!(before.len(), after.len());
    for ((name, tensor), (same_name, same)) in before.iter().zip(&after) {
        assert_eq!((name, tensor.dims()), (same_name, same.dims()));
        let values = |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(values(tensor).iter().map(|v| v.to_bits()).eq(values(same).iter().map(|v| v.to_bits())), "{name}");
    }
});
