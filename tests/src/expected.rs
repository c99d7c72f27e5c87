//! The files of tensors that say what an outside implementation gives.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

/// One file of expected tensors. Every method panics, and so fails the test, where a tensor is absent or of another type.
#[derive(Debug)]
pub struct Expected {
    name: String,
    tensors: HashMap<String, Tensor>,
}

impl Expected {
    /// Reads the safetensors file `name` of `folder`.
    ///
    /// # Panics
    /// It is not there or broken.
    pub fn load(folder: &Path, name: &str) -> Self {
        let path = folder.join(name);
        let tensors =
            candle_core::safetensors::load(&path, &Device::Cpu).unwrap_or_else(|e| panic!("`{}`: {e}", path.display()));
        Self { name: name.to_string(), tensors }
    }

    /// Tensors in the file.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Names of the tensors, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let mut names: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
        names.sort_unstable();
        names.into_iter()
    }

    /// Whether there is a tensor of a name.
    pub fn has(&self, key: &str) -> bool {
        self.tensors.contains_key(key)
    }

    /// The tensor of a name.
    ///
    /// # Panics
    /// There is none.
    pub fn tensor(&self, key: &str) -> &Tensor {
        self.tensors.get(key).unwrap_or_else(|| panic!("`{}` has no tensor `{key}`", self.name))
    }

    /// Token ids, codes or positions: `[rows, length]`.
    ///
    /// # Panics
    /// There are none, or one is negative.
    pub fn ids(&self, key: &str) -> Vec<Vec<u32>> {
        let rows: Vec<Vec<i64>> = self.integers(key);
        let id = |id: i64| u32::try_from(id).unwrap_or_else(|_| panic!("`{}`: `{key}` has {id}", self.name));
        rows.into_iter().map(|row| row.into_iter().map(id).collect()).collect()
    }

    /// Labels, -100 where nothing counts: `[rows, length]`.
    ///
    /// # Panics
    /// There are none.
    pub fn integers(&self, key: &str) -> Vec<Vec<i64>> {
        self.tensor(key).to_vec2().unwrap_or_else(|e| panic!("`{}`: `{key}`: {e}", self.name))
    }

    /// The attention mask, true = a token: `[rows · length]`.
    ///
    /// # Panics
    /// There is none.
    pub fn mask(&self) -> Vec<bool> {
        self.ids("attention_mask").concat().into_iter().map(|attended| attended == 1).collect()
    }

    /// A single number.
    ///
    /// # Panics
    /// There is none.
    pub fn number(&self, key: &str) -> f64 {
        let number = self.tensor(key).to_dtype(DType::F64).and_then(|number| number.to_scalar());
        number.unwrap_or_else(|e| panic!("`{}`: `{key}`: {e}", self.name))
    }
}
