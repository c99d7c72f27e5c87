#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use super::*;
use crate::noise;

/// Where the values begin: at no multiple of any type's size.
const OFFSET: usize = 7;

/// Three parts of a bf16 tensor and some, in a number of values that nothing divides.
const COUNT: usize = 3 * (PART_BYTES / 2) + 4_099;

struct Stored {
    _folder: tempfile::TempDir,
    path: PathBuf,
    file: WeightsFile,
}

/// A file of values between other bytes.
fn store<S: Value>(values: &[S]) -> Stored {
    let mut bytes = vec![0xa5; OFFSET];
    values.iter().for_each(|value| value.push_little_endian(&mut bytes));
    bytes.extend_from_slice(&[0x5a; 5]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("values");
    std::fs::write(&path, bytes).unwrap();
    let file = WeightsFile::open(&path).unwrap();
    Stored { _folder: folder, path, file }
}

impl Stored {
    fn extent<S: Value>(&self, values: &[S]) -> Extent<'_> {
        let bytes = size_of_val(values) as u64;
        Extent { name: "w", file: &self.file, dtype: S::DTYPE, offset: OFFSET as u64, bytes }
    }
}

/// Values that every type can hold.
fn drawn<S: Value>(key: u64) -> Vec<S> {
    (0..COUNT as u64).map(|i| S::narrow(noise::normal(key, i) as f32)).collect()
}

/// The slow truth: one value after the other.
fn converts<S: Value, T: Value>(values: &[S], to: fn(f32) -> T) {
    let expected: Vec<T> = values.iter().map(|value| to(value.widen())).collect();
    let stored = store(values);
    let extent = stored.extent(values);
    let read = extent.read(&[COUNT], T::DTYPE).unwrap();
    assert_eq!((read.dtype(), read.dims()), (T::DTYPE, [COUNT].as_slice()));
    let got: Vec<T> = read.to_vec1().unwrap();
    let differing = got.iter().zip(&expected).position(|(got, expected)| !got.same_bits(*expected));
    assert_eq!(differing, None, "{:?} to {:?}", S::DTYPE, T::DTYPE);

    assert!(extent.matches(&read).unwrap());
    let shorter = read.narrow(0, 0, COUNT - 1).unwrap();
    assert!(!extent.matches(&shorter).unwrap());
    for place in [0, PART_BYTES / T::BYTES - 1, PART_BYTES / T::BYTES, COUNT - 1] {
        let mut changed = got.clone();
        changed[place] = T::narrow(changed[place].widen() + 1.0);
        let changed = Tensor::from_vec(changed, COUNT, &Device::Cpu).unwrap();
        assert!(!extent.matches(&changed).unwrap(), "{:?} to {:?} at {place}", S::DTYPE, T::DTYPE);
    }
}

#[test]
fn reading_in_parts_gives_what_reading_one_by_one_gives() {
    let (single, brain, half) = (drawn::<f32>(1), drawn::<bf16>(2), drawn::<f16>(3));
    converts(&single, |value| value);
    converts(&single, bf16::from_f32);
    converts(&single, f16::from_f32);
    converts(&brain, |value| value);
    converts(&brain, bf16::from_f32);
    converts(&brain, f16::from_f32);
    converts(&half, |value| value);
    converts(&half, bf16::from_f32);
    converts(&half, f16::from_f32);
}

#[test]
fn a_type_that_is_kept_keeps_every_bit() {
    let mut values: Vec<bf16> = (0..COUNT).map(|i| bf16::from_bits(i as u16)).collect();
    let stored = store(&values);
    let extent = stored.extent(&values);
    let read = extent.read(&[COUNT], DType::BF16).unwrap();
    let got: Vec<bf16> = read.to_vec1().unwrap();
    assert!(got.iter().zip(&values).all(|(a, b)| a.to_bits() == b.to_bits()));
    assert!(extent.matches(&read).unwrap(), "no number is equal to itself, its bits are");
    // Minus zero for zero.
    assert_eq!(values[0].to_bits(), 0);
    values[0] = bf16::from_bits(0x8000);
    assert!(!extent.matches(&Tensor::from_vec(values, COUNT, &Device::Cpu).unwrap()).unwrap());
    let nothing = Extent { bytes: 0, ..extent };
    assert_eq!(nothing.read(&[0, 3], DType::F32).unwrap().dims(), [0, 3]);
    assert!(nothing.matches(&Tensor::zeros((0, 3), DType::F32, &Device::Cpu).unwrap()).unwrap());
}

#[test]
fn the_first_value_that_does_not_fit_is_named_whoever_reads_it() {
    let mut values = drawn::<f32>(4);
    let part = PART_BYTES / f16::BYTES;
    for (place, value) in [(part - 1, 70_000.0), (part, 80_000.0), (COUNT - 1, 90_000.0)] {
        values[place] = value;
    }
    let stored = store(&values);
    for _ in 0..8 {
        match stored.extent(&values).read(&[COUNT], DType::F16).unwrap_err() {
            CheckpointError::Overflow { tensor, value, dtype } => {
                assert_eq!((tensor.as_str(), value, dtype), ("w", 70_000.0, DType::F16));
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn a_file_cut_in_any_part_gives_an_error() {
    let values = drawn::<bf16>(5);
    let stored = store(&values);
    let whole = stored.extent(&values).read(&[COUNT], DType::BF16).unwrap();
    let file = std::fs::File::options().write(true).open(&stored.path).unwrap();
    for length in [OFFSET + 2 * COUNT - 1, PART_BYTES, OFFSET, 0] {
        file.set_len(length as u64).unwrap();
        for dtype in [DType::BF16, DType::F32, DType::F16] {
            let error = stored.extent(&values).read(&[COUNT], dtype).unwrap_err();
            assert!(
                matches!(&error, CheckpointError::Io { path, source }
                    if *path == stored.path && source.kind() == io::ErrorKind::UnexpectedEof),
                "{length} as {dtype:?}: {error}"
            );
        }
        assert!(stored.extent(&values).matches(&whole).is_err());
    }
}
