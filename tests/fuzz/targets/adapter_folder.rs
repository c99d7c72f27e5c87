//! An adapter folder: configuration, note, weights and extras. What is accepted is written and read again as the same tensors. The
//! reader that knows no base agrees with the one that does, and what is made of small factors is a folder that it reads.
#![no_main]

use std::sync::LazyLock;

use janus_fuzz::{Scratch, parts, tiny, write_safetensors};
use janus_core::directory::Directory;
use janus_lora::adapter::{Adapter, Method};
use janus_lora::algebra::{self, AdapterFolder, CombineOptions, MajoritySign, NewAdapter, Size};
use janus_lora::status::Silent;
use libfuzzer_sys::fuzz_target;

/// Values of factors of which others are made.
const COMPUTED: usize = 1 << 12;

static GIVEN: LazyLock<Scratch> = LazyLock::new(Scratch::new);
static WRITTEN: LazyLock<Scratch> = LazyLock::new(Scratch::new);
static MADE: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fn reads_again(made: &NewAdapter) {
    let _ = std::fs::remove_file(MADE.path("janus_extras.safetensors"));
    made.write(&Directory::open(MADE.folder()).unwrap()).expect("what was made can be written");
    let again = AdapterFolder::read(MADE.folder()).expect("what was written can be read");
    for (path, factors) in &made.sites {
        let same = &again.sites[path];
        assert_eq!((same.shape(), same.rank()), (factors.shape(), factors.rank()), "{path}");
        assert!((same.scale - factors.scale).abs() <= 1e-9 * factors.scale.abs(), "{path}");
    }
    assert_eq!(again.sites.len(), made.sites.len());
}

fn without_base(adapter: Option<&Adapter>) {
    let read = || AdapterFolder::read(GIVEN.folder());
    let folder = match (read(), adapter) {
        (Ok(folder), _) => folder,
        (Err(error), Some(adapter)) if adapter.config.method == (Method::Lora { bias: false }) => {
            panic!("only the reader with a base takes it: {error}")
        }
        _ => return,
    };
    if let Some(adapter) = adapter {
        for (path, site) in &adapter.sites {
            let same = folder.sites.get(&**path).expect("the readers know the same sites");
            assert_eq!((same.rank(), same.scale), (site.rank, site.scale), "{path}");
        }
        assert_eq!(folder.sites.len(), adapter.sites.len());
    }
    let values = folder.sites.values().flat_map(|factors| [&factors.a, &factors.b]).map(|half| half.elem_count());
    if values.sum::<usize>() > COMPUTED {
        return;
    }
    let _ = algebra::diff(&folder, &folder);
    for size in [Size::Rank(1), Size::Variance(0.9)] {
        if let Ok((made, _)) = algebra::resize(&folder, size, &Silent) {
            reads_again(&made);
        }
    }
    let Ok(other) = read() else { return };
    let both = [(folder, 0.5), (other, -2.0)];
    for (name, density) in [("cat", None), ("svd", None), ("ties_svd", Some(0.5)), ("linear", None)] {
        let method = algebra::Method::from_name(name).unwrap();
        let options = CombineOptions { method, rank: None, density, majority: MajoritySign::Total, seed: 0 };
        if let Ok(made) = algebra::combine(&both, &options, &Silent) {
            reads_again(&made);
        }
    }
}

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
    let adapter = Adapter::read(GIVEN.folder(), &tiny(), false).ok();
    without_base(adapter.as_ref());
    let Some(adapter) = adapter else { return };
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
