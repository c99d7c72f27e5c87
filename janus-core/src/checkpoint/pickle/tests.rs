#![allow(clippy::unwrap_used)]

use super::*;

/// Writes pickles as torch does, and as it does not.
pub(in crate::checkpoint) struct Pickle(pub(in crate::checkpoint) Vec<u8>);

/// One tensor of a state dict.
pub(in crate::checkpoint) struct Spec<'a> {
    pub(in crate::checkpoint) name: &'a str,
    pub(in crate::checkpoint) storage_type: &'a str,
    pub(in crate::checkpoint) storage: &'a str,
    pub(in crate::checkpoint) storage_elements: i32,
    pub(in crate::checkpoint) first_element: i32,
    pub(in crate::checkpoint) shape: &'a [i32],
    pub(in crate::checkpoint) stride: &'a [i32],
}

impl Pickle {
    pub(in crate::checkpoint) fn new() -> Self {
        Self(vec![0x80, 2, b'}', b'q', 0, b'('])
    }

    pub(in crate::checkpoint) fn text(&mut self, text: &str) {
        self.0.push(b'X');
        self.0.extend_from_slice(&(text.len() as u32).to_le_bytes());
        self.0.extend_from_slice(text.as_bytes());
    }

    fn global(&mut self, module: &str, name: &str) {
        self.0.extend_from_slice(format!("c{module}\n{name}\n").as_bytes());
    }

    fn integer(&mut self, number: i32) {
        self.0.push(b'J');
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn integers(&mut self, numbers: &[i32]) {
        self.0.push(b'(');
        numbers.iter().for_each(|number| self.integer(*number));
        self.0.push(b't');
    }

    pub(in crate::checkpoint) fn tensor(&mut self, spec: &Spec<'_>) {
        self.text(spec.name);
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.0.extend_from_slice(b"((");
        self.text("storage");
        self.global("torch", spec.storage_type);
        self.text(spec.storage);
        self.text("cpu");
        self.integer(spec.storage_elements);
        self.0.extend_from_slice(b"tQ");
        self.integer(spec.first_element);
        self.integers(spec.shape);
        self.integers(spec.stride);
        self.0.push(0x89);
        self.global("collections", "OrderedDict");
        self.0.extend_from_slice(b")RtR");
    }

    pub(in crate::checkpoint) fn finish(mut self) -> Vec<u8> {
        self.0.extend_from_slice(b"u.");
        self.0
    }
}

fn spec() -> Spec<'static> {
    Spec {
        name: "a.weight",
        storage_type: "BFloat16Storage",
        storage: "7",
        storage_elements: 10,
        first_element: 4,
        shape: &[2, 3],
        stride: &[3, 1],
    }
}

fn one(spec: &Spec<'_>) -> Result<Vec<PickledTensor>, TorchProblem> {
    let mut pickle = Pickle::new();
    pickle.tensor(spec);
    read_state_dict(&pickle.finish())
}

#[test]
fn a_state_dict_is_read() {
    let expected = PickledTensor {
        name: "a.weight".into(),
        dtype: DType::BF16,
        storage: "7".into(),
        storage_elements: 10,
        first_element: 4,
        shape: vec![2, 3],
        elements: 6,
    };
    assert_eq!(one(&spec()).unwrap(), [expected]);
    // A side of length 1 may have any stride; a scalar has no sides.
    assert!(one(&Spec { shape: &[3, 1, 2], stride: &[2, 77, 1], ..spec() }).is_ok());
    assert_eq!(one(&Spec { shape: &[], stride: &[], ..spec() }).unwrap()[0].elements, 1);
}

/// Protocol 4 spells the same dict with other opcodes.
#[test]
fn the_opcodes_of_protocol_4_are_read() {
    let mut bytes = vec![0x80, 4, 0x95, 0, 0, 0, 0, 0, 0, 0, 0];
    let short = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend_from_slice(&[0x8c, text.len() as u8]);
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(0x94);
    };
    let global = |bytes: &mut Vec<u8>, module: &str, name: &str| {
        short(bytes, module);
        short(bytes, name);
        bytes.extend_from_slice(&[0x93, 0x94]);
    };
    global(&mut bytes, "collections", "OrderedDict");
    bytes.extend_from_slice(b")R");
    short(&mut bytes, "w");
    global(&mut bytes, "torch._utils", "_rebuild_tensor_v2");
    bytes.extend_from_slice(b"((");
    short(&mut bytes, "storage");
    global(&mut bytes, "torch", "FloatStorage");
    short(&mut bytes, "0");
    short(&mut bytes, "cpu");
    bytes.extend_from_slice(&[
        b'M', 0, 1, b't', b'Q', b'K', 0, 0x8a, 2, 0, 1, 0x85, b'K', 1, 0x85, 0x89, b'N', b't', b'R',
    ]);
    bytes.push(b's');
    // The `_metadata` that state dicts carry.
    bytes.extend_from_slice(b"}");
    short(&mut bytes, "_metadata");
    bytes.extend_from_slice(b"}sb.");
    let tensors = read_state_dict(&bytes).unwrap();
    assert_eq!(
        (tensors[0].name.as_str(), tensors[0].shape.as_slice(), tensors[0].dtype),
        ("w", &[256][..], DType::F32)
    );
}

#[test]
fn code_is_refused_by_name() {
    for (module, name) in
        [("os", "system"), ("posix", "system"), ("builtins", "eval"), ("torch", "load"), ("numpy", "ndarray")]
    {
        let mut pickle = Pickle::new();
        pickle.text("a");
        pickle.global(module, name);
        pickle.text("echo pwned");
        pickle.0.extend_from_slice(&[0x85, b'R']);
        let error = read_state_dict(&pickle.finish()).unwrap_err();
        assert!(matches!(&error, TorchProblem::Global { global } if *global == format!("{module}.{name}")), "{error}");
    }
    // The same through the text operands of STACK_GLOBAL.
    let mut pickle = Pickle::new();
    pickle.text("os");
    pickle.text("system");
    pickle.0.push(0x93);
    let error = read_state_dict(&pickle.finish()).unwrap_err();
    assert!(matches!(&error, TorchProblem::Global { global } if global == "os.system"), "{error}");
    // INST, OBJ, NEWOBJ, NEWOBJ_EX, PERSID, EXT1, REDUCE of a text.
    for opcode in [b'i', b'o', 0x81, 0x92, b'P', 0x82] {
        let mut pickle = Pickle::new();
        pickle.0.push(opcode);
        let error = read_state_dict(&pickle.finish()).unwrap_err();
        assert!(matches!(error, TorchProblem::Opcode { opcode: got, position: 6 } if got == opcode), "{error}");
    }
    let mut pickle = Pickle::new();
    pickle.text("print");
    pickle.0.extend_from_slice(b")R");
    assert!(matches!(read_state_dict(&pickle.finish()), Err(TorchProblem::Broken { .. })));
}

#[test]
fn tensors_outside_their_storage_are_refused_by_name() {
    for (first_element, shape, stride) in [
        (5, &[2, 3][..], &[3, 1][..]),
        (-1, &[2], &[1]),
        (i32::MAX, &[2], &[1]),
        (0, &[11], &[1]),
        (0, &[i32::MAX, i32::MAX], &[i32::MAX, 1]),
    ] {
        let error = one(&Spec { first_element, shape, stride, ..spec() }).unwrap_err();
        assert!(matches!(&error, TorchProblem::OutOfRange { name, .. } if name == "a.weight"), "{error}");
    }
    assert!(matches!(one(&Spec { storage_elements: -5, ..spec() }), Err(TorchProblem::Broken { .. })));
}

#[test]
fn views_are_refused_by_name() {
    for (shape, stride) in [
        (&[3, 2][..], &[1, 3][..]),
        (&[2], &[-1]),
        (&[2], &[2]),
        (&[2], &[0]),
        (&[-2], &[1]),
        (&[1], &[-1]),
        (&[i32::MAX, i32::MAX, i32::MAX], &[0, i32::MAX, 1]),
    ] {
        let error = one(&Spec { shape, stride, ..spec() }).unwrap_err();
        assert!(
            matches!(&error, TorchProblem::Strides { name, .. } if name == "a.weight"),
            "{shape:?} {stride:?}: {error}"
        );
    }
    assert!(matches!(one(&Spec { stride: &[1], ..spec() }), Err(TorchProblem::Broken { .. })));
    assert!(matches!(one(&Spec { shape: &[1; 9], stride: &[1; 9], ..spec() }), Err(TorchProblem::Broken { .. })));
}

#[test]
fn what_is_no_state_dict_is_refused() {
    let mut nested = Pickle::new();
    nested.text("state_dict");
    nested.0.push(b'}');
    let error = read_state_dict(&nested.finish()).unwrap_err();
    assert!(matches!(&error, TorchProblem::NotATensor { name } if name == "state_dict"), "{error}");
    let mut twice = Pickle::new();
    twice.tensor(&spec());
    twice.tensor(&spec());
    assert!(matches!(read_state_dict(&twice.finish()), Err(TorchProblem::Twice { .. })));
    assert!(matches!(read_state_dict(b"\x80\x02N."), Err(TorchProblem::Broken { .. })));
}

/// Cut anywhere or damaged anywhere, a pickle gives an error or other tensors, never a panic.
#[test]
fn damage_never_panics() {
    let mut pickle = Pickle::new();
    pickle.tensor(&spec());
    let bytes = pickle.finish();
    for length in 0..bytes.len() {
        assert!(read_state_dict(&bytes[..length]).is_err());
    }
    for position in 0..bytes.len() {
        for value in 0..=255 {
            let mut damaged = bytes.clone();
            damaged[position] = value;
            let _ = read_state_dict(&damaged);
        }
    }
}

/// Nesting and sharing cost no more than the pickle's length: neither the stack of the process nor memory runs out.
#[test]
fn deep_nesting_and_wide_sharing_are_cheap() {
    let mut deep = vec![0x80, 2, b')'];
    deep.extend(std::iter::repeat_n(0x85, 900_000));
    deep.push(b'.');
    assert!(matches!(read_state_dict(&deep), Err(TorchProblem::Broken { .. })));

    // Thirty doublings: a billion leaves if they were copied.
    let mut wide = vec![0x80, 2, b')', b'q', 0];
    for _ in 0..30 {
        wide.extend_from_slice(&[b'h', 0, b'h', 0, 0x86, b'q', 0]);
    }
    wide.push(b'.');
    assert!(matches!(read_state_dict(&wide), Err(TorchProblem::Broken { .. })));
}
