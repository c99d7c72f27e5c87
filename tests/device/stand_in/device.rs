//! A stand-in for a CUDA device, in the place of candle's `dummy_cuda_backend.rs`: what lies "on the device" is a slice of its
//! own kind, computed by candle's code for the processor. As with a real device, an operation of tensors here and there is an
//! error, and so is one for which candle has no CUDA kernel of the type (`kernels.txt`, the words of candle's `.cu` files).
//!
//! `JANUS_STAND_IN_LOG` names a file that gets a line for each kernel at its first launch, and one for each time that the
//! processor waits for values of the device, with the launches and uploads since the time before.
#![allow(dead_code)]

use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::sync::{Mutex, OnceLock};

use crate::backend::{BackendDevice, BackendStorage};
use crate::op::{BinaryOpT, CmpOp, ReduceOp, UnaryOpT};
use crate::scalar::Scalar;
use crate::cpu_backend::CpuDevice;
use crate::{CpuStorage, DType, DeviceLocation, Error, Layout, Result, Shape};

/// The only device of its kind.
#[derive(Debug, Clone)]
pub struct CudaDevice;

/// What lies on it.
#[derive(Debug)]
pub struct CudaStorage(CpuStorage);

/// The number of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceId(usize);

const KERNELS: &str = include_str!("kernels.txt");

/// Sums of few values have a kernel of their own.
const SMALL_SUM: usize = 32;

#[derive(Default)]
struct Log {
    kernels: BTreeMap<String, u64>,
    launches: u64,
    uploads: u64,
    uploaded_values: u64,
}

fn log() -> &'static Mutex<Log> {
    static LOG: OnceLock<Mutex<Log>> = OnceLock::new();
    LOG.get_or_init(Mutex::default)
}

fn write(line: std::fmt::Arguments<'_>) {
    static FILE: OnceLock<Option<Mutex<std::fs::File>>> = OnceLock::new();
    let file = FILE.get_or_init(|| {
        let path = std::env::var_os("JANUS_STAND_IN_LOG")?;
        let file = std::fs::File::options().create(true).append(true).open(path);
        Some(Mutex::new(file.expect("JANUS_STAND_IN_LOG can be written")))
    });
    if let Some(file) = file {
        let mut file = file.lock().expect("no writer panics");
        file.write_all(format!("{line}\n").as_bytes()).expect("JANUS_STAND_IN_LOG can be written");
    }
}

/// Counts a launch, of a kernel that there is.
fn launch(name: &str, dtype: DType) -> Result<()> {
    launch_named(format!("{name}_{}", dtype.as_str()))
}

fn launch_named(kernel: String) -> Result<()> {
    static NAMES: OnceLock<HashSet<&str>> = OnceLock::new();
    if !NAMES.get_or_init(|| KERNELS.lines().collect()).contains(kernel.as_str()) {
        return Err(Error::Msg(format!("stand-in: candle has no CUDA kernel `{kernel}`")).bt());
    }
    let mut log = log().lock().expect("no writer panics");
    log.launches += 1;
    let count = log.kernels.entry(kernel.clone()).or_default();
    *count += 1;
    if *count == 1 {
        drop(log);
        write(format_args!("kernel {kernel}"));
    }
    Ok(())
}

/// Whether cuBLAS can read the matrices of a layout: row after row or column after column without gaps, at even distances.
fn is_matrix(layout: &Layout, rows: usize, columns: usize) -> bool {
    let (dims, stride) = (layout.dims(), layout.stride());
    let [batch @ .., row, column] = stride else { return false };
    let by_rows = (*column == 1 || columns == 1) && (*row == columns || rows == 1);
    let by_columns = (*column == rows || columns == 1) && (*row == 1 || rows == 1);
    let is_even = match batch {
        [] | [_] => true,
        [outer, inner] => *outer == inner * dims[1] || dims[0] == 1 || dims[1] == 1,
        _ => false,
    };
    (by_rows || by_columns) && is_even
}

fn count(storage: &CpuStorage) -> usize {
    match storage {
        CpuStorage::U8(v) => v.len(),
        CpuStorage::U32(v) => v.len(),
        CpuStorage::I64(v) => v.len(),
        CpuStorage::BF16(v) => v.len(),
        CpuStorage::F16(v) => v.len(),
        CpuStorage::F32(v) => v.len(),
        CpuStorage::F64(v) => v.len(),
        _ => 0,
    }
}

/// Counts a launch of cuBLAS.
fn gemm(dtype: DType) -> Result<()> {
    if !matches!(dtype, DType::F16 | DType::BF16 | DType::F32 | DType::F64) {
        return Err(Error::Msg(format!("stand-in: cuBLAS has no product of {dtype:?}")).bt());
    }
    log().lock().expect("no writer panics").launches += 1;
    Ok(())
}

fn uploaded(storage: CpuStorage, values: usize) -> CudaStorage {
    let mut log = log().lock().expect("no writer panics");
    log.uploads += 1;
    log.uploaded_values += values as u64;
    CudaStorage(storage)
}

/// Indices of rows: of three types, over contiguous values.
fn indexed(kernel: &str, ids: &CudaStorage, values: &[&Layout], dtype: DType, op: &'static str) -> Result<()> {
    let of = match ids.0.dtype() {
        DType::U8 => "u8",
        DType::U32 => "u32",
        DType::I64 => "i64",
        other => return Err(Error::Msg(format!("stand-in: {op} by indices of {other:?}")).bt()),
    };
    if values.iter().any(|layout| layout.contiguous_offsets().is_none()) {
        return Err(Error::RequiresContiguous { op }.bt());
    }
    launch(&format!("{kernel}_{of}"), dtype)
}

impl CudaStorage {
    pub fn transfer_to_device(&self, _: &CudaDevice) -> Result<Self> {
        Ok(Self(self.0.clone()))
    }

    fn dtype_of(&self) -> DType {
        self.0.dtype()
    }
}

impl CudaDevice {
    pub fn new_with_stream(ordinal: usize) -> Result<Self> {
        Self::new(ordinal)
    }

    pub fn id(&self) -> DeviceId {
        DeviceId(0)
    }
}

impl BackendStorage for CudaStorage {
    type Device = CudaDevice;

    fn try_clone(&self, layout: &Layout) -> Result<Self> {
        Ok(Self(self.0.try_clone(layout)?))
    }

    fn dtype(&self) -> DType {
        self.0.dtype()
    }

    fn device(&self) -> &CudaDevice {
        &CudaDevice
    }

    fn const_set(&mut self, value: Scalar, layout: &Layout) -> Result<()> {
        launch("const_set", self.dtype_of())?;
        self.0.const_set(value, layout)
    }

    fn to_cpu_storage(&self) -> Result<CpuStorage> {
        let mut log = log().lock().expect("no writer panics");
        let (launches, uploads, uploaded_values) = (log.launches, log.uploads, log.uploaded_values);
        (log.launches, log.uploads, log.uploaded_values) = (0, 0, 0);
        drop(log);
        write(format_args!(
            "wait for {} values of {}, after {launches} launches and {uploads} uploads of {uploaded_values} values",
            count(&self.0),
            self.0.dtype().as_str()
        ));
        Ok(self.0.clone())
    }

    fn affine(&self, layout: &Layout, mul: f64, add: f64) -> Result<Self> {
        launch("affine", self.dtype_of())?;
        self.0.affine(layout, mul, add).map(Self)
    }

    fn powf(&self, layout: &Layout, exponent: f64) -> Result<Self> {
        launch("upowf", self.dtype_of())?;
        self.0.powf(layout, exponent).map(Self)
    }

    fn elu(&self, layout: &Layout, alpha: f64) -> Result<Self> {
        launch("uelu", self.dtype_of())?;
        self.0.elu(layout, alpha).map(Self)
    }

    fn reduce_op(&self, op: ReduceOp, layout: &Layout, dims: &[usize]) -> Result<Self> {
        let summed: usize = dims.iter().map(|dim| layout.dims()[*dim]).product();
        let name = match op {
            ReduceOp::Sum if summed <= SMALL_SUM => "fast_sum_small",
            ReduceOp::Sum => "fast_sum",
            ReduceOp::Min => "fast_min",
            ReduceOp::Max => "fast_max",
            ReduceOp::ArgMin => "fast_argmin",
            ReduceOp::ArgMax => "fast_argmax",
        };
        launch(name, self.dtype_of())?;
        self.0.reduce_op(op, layout, dims).map(Self)
    }

    fn cmp(&self, op: CmpOp, other: &Self, layout: &Layout, other_layout: &Layout) -> Result<Self> {
        let name = match op {
            CmpOp::Eq => "eq",
            CmpOp::Ne => "ne",
            CmpOp::Le => "le",
            CmpOp::Ge => "ge",
            CmpOp::Lt => "lt",
            CmpOp::Gt => "gt",
        };
        launch(name, self.dtype_of())?;
        self.0.cmp(op, &other.0, layout, other_layout).map(Self)
    }

    fn to_dtype(&self, layout: &Layout, dtype: DType) -> Result<Self> {
        launch_named(format!("cast_{}_{}", self.dtype_of().as_str(), dtype.as_str()))?;
        self.0.to_dtype(layout, dtype).map(Self)
    }

    fn unary_impl<B: UnaryOpT>(&self, layout: &Layout) -> Result<Self> {
        launch(B::KERNEL, self.dtype_of())?;
        self.0.unary_impl::<B>(layout).map(Self)
    }

    fn binary_impl<B: BinaryOpT>(&self, other: &Self, layout: &Layout, other_layout: &Layout) -> Result<Self> {
        launch(B::KERNEL, self.dtype_of())?;
        self.0.binary_impl::<B>(&other.0, layout, other_layout).map(Self)
    }

    fn where_cond(&self, layout: &Layout, yes: &Self, yes_layout: &Layout, no: &Self, no_layout: &Layout) -> Result<Self> {
        let of = match self.dtype_of() {
            dtype @ (DType::U8 | DType::U32 | DType::I64) => dtype.as_str(),
            other => return Err(Error::Msg(format!("stand-in: a condition of {other:?}")).bt()),
        };
        launch(&format!("where_{of}"), yes.dtype_of())?;
        self.0.where_cond(layout, &yes.0, yes_layout, &no.0, no_layout).map(Self)
    }

    fn conv1d(&self, layout: &Layout, kernel: &Self, kernel_layout: &Layout, p: &crate::conv::ParamsConv1D) -> Result<Self> {
        launch("im2col1d", self.dtype_of())?;
        gemm(self.dtype_of())?;
        self.0.conv1d(layout, &kernel.0, kernel_layout, p).map(Self)
    }

    fn conv_transpose1d(
        &self,
        layout: &Layout,
        kernel: &Self,
        kernel_layout: &Layout,
        p: &crate::conv::ParamsConvTranspose1D,
    ) -> Result<Self> {
        launch("conv_transpose1d", self.dtype_of())?;
        self.0.conv_transpose1d(layout, &kernel.0, kernel_layout, p).map(Self)
    }

    fn conv2d(&self, layout: &Layout, kernel: &Self, kernel_layout: &Layout, p: &crate::conv::ParamsConv2D) -> Result<Self> {
        launch("im2col", self.dtype_of())?;
        gemm(self.dtype_of())?;
        self.0.conv2d(layout, &kernel.0, kernel_layout, p).map(Self)
    }

    fn conv_transpose2d(
        &self,
        layout: &Layout,
        kernel: &Self,
        kernel_layout: &Layout,
        p: &crate::conv::ParamsConvTranspose2D,
    ) -> Result<Self> {
        launch("conv_transpose2d", self.dtype_of())?;
        self.0.conv_transpose2d(layout, &kernel.0, kernel_layout, p).map(Self)
    }

    fn index_select(&self, ids: &Self, layout: &Layout, ids_layout: &Layout, dim: usize) -> Result<Self> {
        indexed("is", ids, &[layout], self.dtype_of(), "index-select")?;
        self.0.index_select(&ids.0, layout, ids_layout, dim).map(Self)
    }

    fn gather(&self, layout: &Layout, ids: &Self, ids_layout: &Layout, dim: usize) -> Result<Self> {
        indexed("gather", ids, &[layout, ids_layout], self.dtype_of(), "gather")?;
        self.0.gather(layout, &ids.0, ids_layout, dim).map(Self)
    }

    fn scatter_set(
        &mut self,
        layout: &Layout,
        ids: &Self,
        ids_layout: &Layout,
        from: &Self,
        from_layout: &Layout,
        dim: usize,
    ) -> Result<()> {
        indexed("s", ids, &[layout, ids_layout, from_layout], self.dtype_of(), "scatter")?;
        self.0.scatter_set(layout, &ids.0, ids_layout, &from.0, from_layout, dim)
    }

    fn scatter_add_set(
        &mut self,
        layout: &Layout,
        ids: &Self,
        ids_layout: &Layout,
        from: &Self,
        from_layout: &Layout,
        dim: usize,
    ) -> Result<()> {
        indexed("sa", ids, &[layout, ids_layout, from_layout], self.dtype_of(), "scatter-add")?;
        self.0.scatter_add_set(layout, &ids.0, ids_layout, &from.0, from_layout, dim)
    }

    fn index_add(
        &self,
        layout: &Layout,
        ids: &Self,
        ids_layout: &Layout,
        from: &Self,
        from_layout: &Layout,
        dim: usize,
    ) -> Result<Self> {
        indexed("ia", ids, &[layout, ids_layout, from_layout], self.dtype_of(), "index-add")?;
        self.0.index_add(layout, &ids.0, ids_layout, &from.0, from_layout, dim).map(Self)
    }

    fn matmul(
        &self,
        other: &Self,
        sizes: (usize, usize, usize, usize),
        layout: &Layout,
        other_layout: &Layout,
    ) -> Result<Self> {
        let (_, m, n, k) = sizes;
        if !is_matrix(layout, m, k) || !is_matrix(other_layout, k, n) {
            let strides = (layout.stride(), other_layout.stride());
            return Err(Error::Msg(format!("stand-in: a product of {m} x {k} and {k} x {n}, strides {strides:?}")).bt());
        }
        gemm(self.dtype_of())?;
        self.0.matmul(&other.0, sizes, layout, other_layout).map(Self)
    }

    fn copy_strided_src(&self, to: &mut Self, offset: usize, layout: &Layout) -> Result<()> {
        if layout.is_contiguous() {
            log().lock().expect("no writer panics").launches += 1;
        } else {
            launch("ucopy", self.dtype_of())?;
        }
        self.0.copy_strided_src(&mut to.0, offset, layout)
    }

    fn copy2d(&self, to: &mut Self, d1: usize, d2: usize, from_s: usize, to_s: usize, from_o: usize, to_o: usize) -> Result<()> {
        launch("copy2d", self.dtype_of())?;
        self.0.copy2d(&mut to.0, d1, d2, from_s, to_s, from_o, to_o)
    }

    fn avg_pool2d(&self, layout: &Layout, kernel: (usize, usize), stride: (usize, usize)) -> Result<Self> {
        launch("avg_pool2d", self.dtype_of())?;
        self.0.avg_pool2d(layout, kernel, stride).map(Self)
    }

    fn max_pool2d(&self, layout: &Layout, kernel: (usize, usize), stride: (usize, usize)) -> Result<Self> {
        launch("max_pool2d", self.dtype_of())?;
        self.0.max_pool2d(layout, kernel, stride).map(Self)
    }

    fn upsample_nearest1d(&self, _: &Layout, _: usize) -> Result<Self> {
        Err(Error::Msg("stand-in: candle has no upsample_nearest1d on CUDA".into()).bt())
    }

    fn upsample_nearest2d(&self, layout: &Layout, height: usize, width: usize) -> Result<Self> {
        launch("upsample_nearest2d", self.dtype_of())?;
        self.0.upsample_nearest2d(layout, height, width).map(Self)
    }

    fn upsample_bilinear2d(
        &self,
        layout: &Layout,
        height: usize,
        width: usize,
        align: bool,
        scale_h: Option<f64>,
        scale_w: Option<f64>,
    ) -> Result<Self> {
        launch("upsample_bilinear2d", self.dtype_of())?;
        self.0.upsample_bilinear2d(layout, height, width, align, scale_h, scale_w).map(Self)
    }
}

impl BackendDevice for CudaDevice {
    type Storage = CudaStorage;

    fn new(_: usize) -> Result<Self> {
        Ok(Self)
    }

    fn set_seed(&self, _: u64) -> Result<()> {
        Ok(())
    }

    fn get_current_seed(&self) -> Result<u64> {
        Ok(0)
    }

    fn location(&self) -> DeviceLocation {
        DeviceLocation::Cuda { gpu_id: 0 }
    }

    fn same_device(&self, _: &Self) -> bool {
        true
    }

    fn zeros_impl(&self, shape: &Shape, dtype: DType) -> Result<CudaStorage> {
        log().lock().expect("no writer panics").launches += 1;
        CpuDevice.zeros_impl(shape, dtype).map(CudaStorage)
    }

    unsafe fn alloc_uninit(&self, shape: &Shape, dtype: DType) -> Result<CudaStorage> {
        // Zeros are initialised values, too.
        CpuDevice.zeros_impl(shape, dtype).map(CudaStorage)
    }

    fn storage_from_slice<T: crate::WithDType>(&self, values: &[T]) -> Result<CudaStorage> {
        Ok(uploaded(T::to_cpu_storage(values), values.len()))
    }

    fn storage_from_cpu_storage(&self, storage: &CpuStorage) -> Result<CudaStorage> {
        self.storage_from_cpu_storage_owned(storage.clone())
    }

    fn storage_from_cpu_storage_owned(&self, storage: CpuStorage) -> Result<CudaStorage> {
        let values = count(&storage);
        Ok(uploaded(storage, values))
    }

    fn rand_uniform(&self, shape: &Shape, dtype: DType, low: f64, high: f64) -> Result<CudaStorage> {
        CpuDevice.rand_uniform(shape, dtype, low, high).map(CudaStorage)
    }

    fn rand_normal(&self, shape: &Shape, dtype: DType, mean: f64, std: f64) -> Result<CudaStorage> {
        CpuDevice.rand_normal(shape, dtype, mean, std).map(CudaStorage)
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

// Precision of products, which candle's users may set.
pub fn gemm_reduced_precision_f16() -> bool {
    false
}
pub fn set_gemm_reduced_precision_f16(_: bool) {}
pub fn gemm_reduced_precision_bf16() -> bool {
    false
}
pub fn set_gemm_reduced_precision_bf16(_: bool) {}
pub fn gemm_reduced_precision_f32() -> bool {
    false
}
pub fn set_gemm_reduced_precision_f32(_: bool) {}
