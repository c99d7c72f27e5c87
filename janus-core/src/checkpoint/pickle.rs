//! The pickle of a state dict, read by a machine that executes nothing.
//!
//! A pickle is a program for a stack machine. This one knows the opcodes and the few names that a dict of tensors needs
//! (opcodes: `Lib/pickletools.py` of CPython; names: `torch/_utils.py`, `torch/serialization.py`), notes what each
//! tensor says of itself, and refuses every other opcode and name before anything could come of it. Values live in one
//! flat arena, so that neither nesting nor sharing costs more than the pickle's own length.

use std::collections::{HashMap, HashSet};

use candle_core::DType;

use super::error::TorchProblem;

/// Bounds on what is copied out of the arena; torch's own values are at most 7, 4 and a few digits here.
const MAX_ARGUMENTS: usize = 8;
const MAX_RANK: usize = 8;
const MAX_KEY_BYTES: usize = 64;

/// What the pickle says of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PickledTensor {
    pub(super) name: String,
    pub(super) dtype: DType,
    /// Key of its storage in the archive.
    pub(super) storage: String,
    /// Elements the pickle claims for the storage.
    pub(super) storage_elements: u64,
    /// First element in the storage.
    pub(super) first_element: u64,
    pub(super) shape: Vec<usize>,
    /// Product of the shape.
    pub(super) elements: u64,
}

/// Names that may appear; all of them are only noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Global {
    RebuildTensor,
    RebuildParameter,
    OrderedDict,
    Storage(DType),
}

fn global(module: &str, name: &str) -> Option<Global> {
    match (module, name) {
        ("torch._utils", "_rebuild_tensor_v2") => Some(Global::RebuildTensor),
        ("torch._utils", "_rebuild_parameter") => Some(Global::RebuildParameter),
        ("collections", "OrderedDict") => Some(Global::OrderedDict),
        ("torch", "FloatStorage") => Some(Global::Storage(DType::F32)),
        ("torch", "BFloat16Storage") => Some(Global::Storage(DType::BF16)),
        ("torch", "HalfStorage") => Some(Global::Storage(DType::F16)),
        ("torch", "DoubleStorage") => Some(Global::Storage(DType::F64)),
        ("torch", "LongStorage") => Some(Global::Storage(DType::I64)),
        ("torch", "IntStorage") => Some(Global::Storage(DType::I32)),
        ("torch", "ShortStorage") => Some(Global::Storage(DType::I16)),
        ("torch", "ByteStorage") => Some(Global::Storage(DType::U8)),
        _ => None,
    }
}

/// A value on the stack. What has parts is an index into the arena.
#[derive(Debug, Clone, Copy)]
enum Item {
    Mark,
    /// None, a flag or a number with a fraction: nothing that a tensor needs.
    Other,
    Integer(i64),
    Text(usize),
    Tuple(usize),
    List,
    Dict(usize),
    Global(Global),
    Storage(usize),
    Tensor(usize),
}

#[derive(Debug, Clone)]
struct Storage {
    dtype: DType,
    key: usize,
    elements: u64,
}

#[derive(Debug, Clone)]
struct Tensor {
    storage: usize,
    first_element: i64,
    shape: Vec<i64>,
    stride: Vec<i64>,
}

struct Machine<'a> {
    bytes: &'a [u8],
    position: usize,
    stack: Vec<Item>,
    memo: HashMap<u32, Item>,
    texts: Vec<String>,
    tuples: Vec<Vec<Item>>,
    dicts: Vec<Vec<(Item, Item)>>,
    storages: Vec<Storage>,
    tensors: Vec<Tensor>,
}

/// Operations of a pickle; a tensor takes about forty, and checkpoints of thousands of tensors are the largest.
const MAX_STEPS: usize = 1_000_000;

type Step<T> = Result<T, TorchProblem>;

/// The tensors of the state dict that `bytes` describe, in its order.
pub(super) fn read_state_dict(bytes: &[u8]) -> Step<Vec<PickledTensor>> {
    let mut machine = Machine {
        bytes,
        position: 0,
        stack: Vec::new(),
        memo: HashMap::new(),
        texts: Vec::new(),
        tuples: Vec::new(),
        dicts: Vec::new(),
        storages: Vec::new(),
        tensors: Vec::new(),
    };
    let result = machine.run()?;
    machine.state_dict(result)
}

impl Machine<'_> {
    fn broken(&self, problem: &'static str) -> TorchProblem {
        TorchProblem::Broken { position: self.position, problem }
    }

    fn take(&mut self, length: usize) -> Step<&[u8]> {
        let end = self.position.checked_add(length).filter(|end| *end <= self.bytes.len());
        let Some(end) = end else {
            return Err(self.broken("it ends early"));
        };
        let taken = &self.bytes[self.position..end];
        self.position = end;
        Ok(taken)
    }

    /// An unsigned little-endian number of `length` bytes.
    fn number(&mut self, length: usize) -> Step<u64> {
        Ok(self.take(length)?.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn push_text(&mut self, length: u64) -> Step<()> {
        let length = usize::try_from(length).map_err(|_| self.broken("it ends early"))?;
        let text = std::str::from_utf8(self.take(length)?).map(str::to_owned);
        let text = text.map_err(|_| self.broken("a text is not UTF-8"))?;
        self.texts.push(text);
        self.stack.push(Item::Text(self.texts.len() - 1));
        Ok(())
    }

    fn line(&mut self) -> Step<String> {
        let rest = &self.bytes[self.position..];
        let Some(length) = rest.iter().position(|byte| *byte == b'\n') else {
            return Err(self.broken("it ends early"));
        };
        let line = String::from_utf8_lossy(&rest[..length]).into_owned();
        self.position += length + 1;
        Ok(line)
    }

    fn pop(&mut self) -> Step<Item> {
        match self.stack.pop() {
            Some(Item::Mark) | None => Err(self.broken("an operand is missing")),
            Some(item) => Ok(item),
        }
    }

    /// Everything above the topmost mark, which goes, too.
    fn pop_to_mark(&mut self) -> Step<Vec<Item>> {
        match self.stack.iter().rposition(|item| matches!(item, Item::Mark)) {
            None => Err(self.broken("a mark is missing")),
            Some(mark) => {
                let items = self.stack.split_off(mark + 1);
                self.stack.pop();
                Ok(items)
            }
        }
    }

    fn push_tuple(&mut self, items: Vec<Item>) {
        self.tuples.push(items);
        self.stack.push(Item::Tuple(self.tuples.len() - 1));
    }

    fn push_short_tuple(&mut self, length: usize) -> Step<()> {
        let mut items = Vec::with_capacity(length);
        for _ in 0..length {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push_tuple(items);
        Ok(())
    }

    fn push_dict(&mut self) {
        self.dicts.push(Vec::new());
        self.stack.push(Item::Dict(self.dicts.len() - 1));
    }

    fn push_global(&mut self, module: &str, name: &str) -> Step<()> {
        match global(module, name) {
            Some(known) => {
                self.stack.push(Item::Global(known));
                Ok(())
            }
            None => Err(TorchProblem::Global { global: format!("{module}.{name}") }),
        }
    }

    fn remember(&mut self, slot: u64) -> Step<()> {
        let slot = u32::try_from(slot).map_err(|_| self.broken("a memo slot is out of range"))?;
        match self.stack.last() {
            None | Some(Item::Mark) => Err(self.broken("an operand is missing")),
            Some(item) => {
                self.memo.insert(slot, *item);
                Ok(())
            }
        }
    }

    fn recall(&mut self, slot: u64) -> Step<()> {
        match u32::try_from(slot).ok().and_then(|slot| self.memo.get(&slot)) {
            Some(item) => {
                self.stack.push(*item);
                Ok(())
            }
            None => Err(self.broken("a memo slot is empty")),
        }
    }

    fn run(&mut self) -> Step<Item> {
        let mut steps = 0;
        loop {
            steps += 1;
            if steps > MAX_STEPS {
                return Err(TorchProblem::TooLong { limit: MAX_STEPS });
            }
            let opcode_position = self.position;
            let opcode = self.take(1)?[0];
            match opcode {
                0x80 => {
                    // PROTO
                    self.take(1)?;
                }
                0x95 => {
                    // FRAME: only announces how much to read ahead.
                    self.take(8)?;
                }
                b'.' => return self.pop(),
                b'(' => self.stack.push(Item::Mark),
                b'0' => {
                    self.pop()?;
                }
                b'N' | 0x88 | 0x89 => self.stack.push(Item::Other),
                b'G' => {
                    self.take(8)?;
                    self.stack.push(Item::Other);
                }
                b'K' => self.push_integer(1)?,
                b'M' => self.push_integer(2)?,
                b'J' => {
                    let number = self.number(4)? as u32;
                    self.stack.push(Item::Integer(i64::from(number.cast_signed())));
                }
                0x8a => self.push_long()?,
                b'X' => {
                    let length = self.number(4)?;
                    self.push_text(length)?;
                }
                0x8c => {
                    let length = self.number(1)?;
                    self.push_text(length)?;
                }
                0x8d => {
                    let length = self.number(8)?;
                    self.push_text(length)?;
                }
                b')' => self.push_tuple(Vec::new()),
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.push_tuple(items);
                }
                0x85..=0x87 => self.push_short_tuple(usize::from(opcode - 0x84))?,
                b']' => self.stack.push(Item::List),
                b'}' => self.push_dict(),
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.set_items(&[key, value])?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.set_items(&items)?;
                }
                b'q' => {
                    let slot = self.number(1)?;
                    self.remember(slot)?;
                }
                b'r' => {
                    let slot = self.number(4)?;
                    self.remember(slot)?;
                }
                0x94 => self.remember(self.memo.len() as u64)?,
                b'h' => {
                    let slot = self.number(1)?;
                    self.recall(slot)?;
                }
                b'j' => {
                    let slot = self.number(4)?;
                    self.recall(slot)?;
                }
                b'c' => {
                    let module = self.line()?;
                    let name = self.line()?;
                    self.push_global(&module, &name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (Item::Text(module), Item::Text(name)) = (module, name) else {
                        return Err(self.broken("a name is not a text"));
                    };
                    let (module, name) = (self.texts[module].clone(), self.texts[name].clone());
                    self.push_global(&module, &name)?;
                }
                b'Q' => self.push_storage()?,
                b'R' => self.reduce()?,
                b'b' => self.build()?,
                opcode => return Err(TorchProblem::Opcode { opcode, position: opcode_position }),
            }
        }
    }

    fn push_integer(&mut self, length: usize) -> Step<()> {
        let number = self.number(length)?;
        self.stack.push(Item::Integer(number as i64));
        Ok(())
    }

    /// LONG1: two's complement of a given length.
    fn push_long(&mut self) -> Step<()> {
        let length = self.number(1)? as usize;
        if length > 8 {
            return Err(self.broken("a number does not fit 64 bits"));
        }
        let number = self.number(length)?;
        let unused_bits = 64 - 8 * length as u32;
        let number = if length == 0 { 0 } else { (number << unused_bits).cast_signed() >> unused_bits };
        self.stack.push(Item::Integer(number));
        Ok(())
    }

    fn set_items(&mut self, items: &[Item]) -> Step<()> {
        let Some(Item::Dict(dict)) = self.stack.last() else {
            return Err(self.broken("entries are set on something that is no dict"));
        };
        if !items.len().is_multiple_of(2) {
            return Err(self.broken("a key has no value"));
        }
        self.dicts[*dict].extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
        Ok(())
    }

    /// A persistent id: `("storage", type, key, device, elements)`.
    fn push_storage(&mut self) -> Step<()> {
        let Item::Tuple(id) = self.pop()? else {
            return Err(self.broken("a storage is not described by a tuple"));
        };
        let storage = match self.tuples[id].as_slice() {
            [Item::Text(kind), Item::Global(Global::Storage(dtype)), Item::Text(key), _, Item::Integer(elements)]
                if self.texts[*kind] == "storage" && self.texts[*key].len() <= MAX_KEY_BYTES =>
            {
                let elements = u64::try_from(*elements).map_err(|_| self.broken("a storage has a negative size"))?;
                Storage { dtype: *dtype, key: *key, elements }
            }
            _ => return Err(self.broken("a storage is not described as torch does")),
        };
        self.storages.push(storage);
        self.stack.push(Item::Storage(self.storages.len() - 1));
        Ok(())
    }

    /// A call: of the few names that may be called, each stands for a value that is noted here.
    fn reduce(&mut self) -> Step<()> {
        let Item::Tuple(arguments) = self.pop()? else {
            return Err(self.broken("arguments are not a tuple"));
        };
        if self.tuples[arguments].len() > MAX_ARGUMENTS {
            return Err(self.broken("a call has too many arguments"));
        }
        let arguments = self.tuples[arguments].clone();
        match self.pop()? {
            Item::Global(Global::OrderedDict) if arguments.is_empty() => {
                self.push_dict();
                Ok(())
            }
            Item::Global(Global::RebuildTensor) => self.rebuild_tensor(&arguments),
            Item::Global(Global::RebuildParameter) => match arguments.first() {
                Some(tensor @ Item::Tensor(_)) => {
                    self.stack.push(*tensor);
                    Ok(())
                }
                _ => Err(self.broken("a parameter holds no tensor")),
            },
            _ => Err(self.broken("something is called that tensors do not call")),
        }
    }

    fn rebuild_tensor(&mut self, arguments: &[Item]) -> Step<()> {
        let [Item::Storage(storage), Item::Integer(first_element), Item::Tuple(shape), Item::Tuple(stride), ..] =
            arguments
        else {
            return Err(self.broken("a tensor is not described as torch does"));
        };
        let tensor = Tensor {
            storage: *storage,
            first_element: *first_element,
            shape: self.integers(*shape)?,
            stride: self.integers(*stride)?,
        };
        if tensor.shape.len() != tensor.stride.len() {
            return Err(self.broken("shape and strides of a tensor differ in length"));
        }
        self.tensors.push(tensor);
        self.stack.push(Item::Tensor(self.tensors.len() - 1));
        Ok(())
    }

    fn integers(&self, tuple: usize) -> Step<Vec<i64>> {
        if self.tuples[tuple].len() > MAX_RANK {
            return Err(self.broken("a tensor has too many dimensions"));
        }
        self.tuples[tuple]
            .iter()
            .map(|item| match item {
                Item::Integer(number) => Ok(*number),
                _ => Err(self.broken("a side of a tensor is not a number")),
            })
            .collect()
    }

    /// BUILD sets attributes; a state dict carries `_metadata` that way, which nothing here reads.
    fn build(&mut self) -> Step<()> {
        let state = self.pop()?;
        match (state, self.stack.last()) {
            (Item::Dict(_), Some(Item::Dict(_))) => Ok(()),
            _ => Err(self.broken("attributes are set on something that is no dict")),
        }
    }

    fn state_dict(&self, result: Item) -> Step<Vec<PickledTensor>> {
        let Item::Dict(dict) = result else {
            return Err(self.broken("it describes no state dict"));
        };
        let mut names = HashSet::new();
        let mut tensors = Vec::with_capacity(self.dicts[dict].len());
        for (key, value) in &self.dicts[dict] {
            let Item::Text(name) = key else {
                return Err(self.broken("a key of the state dict is not a text"));
            };
            let name = &self.texts[*name];
            let Item::Tensor(tensor) = value else {
                return Err(TorchProblem::NotATensor { name: name.clone() });
            };
            if !names.insert(name) {
                return Err(TorchProblem::Twice { name: name.clone() });
            }
            tensors.push(self.describe(name, &self.tensors[*tensor])?);
        }
        Ok(tensors)
    }

    /// The tensor with its numbers checked: a contiguous run within the claimed storage.
    fn describe(&self, name: &str, tensor: &Tensor) -> Step<PickledTensor> {
        let strides = || TorchProblem::Strides {
            name: name.to_string(),
            shape: tensor.shape.clone(),
            stride: tensor.stride.clone(),
        };
        let mut elements = 1_u64;
        let mut contiguous = 1_i64;
        for (side, stride) in tensor.shape.iter().zip(&tensor.stride).rev() {
            let length = u64::try_from(*side).map_err(|_| strides())?;
            // The stride of a side of length 1 is never used, and torch leaves arbitrary ones there.
            if *stride < 0 || (length > 1 && *stride != contiguous) {
                return Err(strides());
            }
            elements = elements.checked_mul(length).ok_or_else(strides)?;
            contiguous = contiguous.checked_mul((*side).max(1)).ok_or_else(strides)?;
        }
        let storage = &self.storages[tensor.storage];
        let out_of_range = |begin: u64, end: u64| TorchProblem::OutOfRange {
            name: name.to_string(),
            begin,
            end,
            storage: self.texts[storage.key].clone(),
            elements: storage.elements,
        };
        let first_element = u64::try_from(tensor.first_element).map_err(|_| out_of_range(0, elements))?;
        let end = first_element.saturating_add(elements);
        if end > storage.elements {
            return Err(out_of_range(first_element, end));
        }
        let shape: Option<Vec<usize>> = tensor.shape.iter().map(|side| usize::try_from(*side).ok()).collect();
        Ok(PickledTensor {
            name: name.to_string(),
            dtype: storage.dtype,
            storage: self.texts[storage.key].clone(),
            storage_elements: storage.elements,
            first_element,
            shape: shape.ok_or_else(strides)?,
            elements,
        })
    }
}

#[cfg(test)]
pub(super) mod tests;
