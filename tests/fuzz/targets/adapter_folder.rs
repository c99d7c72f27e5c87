//! An adapter folder: configuration, note, weights and extras. What is accepted is written and read again as the same tensors.
#![no_main]

use std::sync::LazyLock;

use janus_fuzz::{Scratch, parts, tiny, write_safetensors};
use janus_lora::adapter::Adapter;
use libfuzzer_sys::fuzz_target;

static GIVEN: LazyLock<Scratch> = LazyLock::new(Scratch::new);
static WRITTEN: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|data: &[u8]| {
    let [config, note, weights, extras] = parts(data);
    GIVEN.write("adapter_config.json", config);
    GIVEN.write("janus_adapter.json", if note.is_empty() { br#"{"version":1}"# } else { note });
    write_safetensors(&GIVEN.path("adapter_model.safetensors"), weights);
    let extras_file = GIVEN.path("janus_extras.safetensors");
    if extras.is_empty() {
        // Absent already where the last folder had none, either.
        let _ = std::fs::remove_file(&extras_file);
    } else {
        write_safetensors(&extras_file, extras);
    }
    let _ = std::fs::remove_file(WRITTEN.path("janus_extras.safetensors"));
    let Ok(adapter) = Adapter::read(GIVEN.folder(), &tiny(), false) else { return };
    adapter.write(WRITTEN.folder()).expect("what was read can be written");
    let again = Adapter::read(WRITTEN.folder(), &tiny(), false).expect("what was written can be read");
    assert_eq!(again.config, adapter.config);
    assert_eq!(again.note, adapter.note);
    let kinds = |adapter: &Adapter| adapter.heads.iter().map(|(n, h)| (n.clone(), h.kind.clone())).collect::<Vec<_>>();
    assert_eq!(kinds(&again), kinds(&adapter));
    let all = |adapter: &Adapter| [adapter.tensors(), adapter.extras()].concat();
    let (before, after) = (all(&adapter), all(&again));
    assert_eq!(before.len(), after.len());
    for ((name, tensor), (same_name, same)) in before.iter().zip(&after) {
        assert_eq!((name, tensor.dims()), (same_name, same.dims()));
        let values = |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(values(tensor).iter().map(|v| v.to_bits()).eq(values(same).iter().map(|v| v.to_bits())), "{name}");
    }
});
