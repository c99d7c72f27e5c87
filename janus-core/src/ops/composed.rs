//! The switch between the two ways to compute an operation: by code for the processor, or composed of candle's own
//! differentiable operations, which is the only way on other devices and the slow truth everywhere.

use std::cell::Cell;

use candle_core::{Device, Result, Tensor, bail};

thread_local! {
    static FORCED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` while every operation of this thread is composed of candle's own, on the processor, too.
///
/// This is how a pass runs on other devices: slower here, the same numbers up to rounding, forward and backward. While it
/// lasts, code that knows the processor only refuses to run, so that a pass that gets through has met none of it. A graph
/// built outside cannot be walked back inside.
pub fn with_composed<T>(f: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            FORCED.set(self.0);
        }
    }
    let _restore = Restore(FORCED.replace(true));
    f()
}

/// Whether an operation on tensors of `device` has to be composed of candle's own.
pub fn is_composed(device: &Device) -> bool {
    !device.is_cpu() || FORCED.get()
}

/// `x / sqrt(square + eps)` by candle's operations; NaN where the square is beyond all numbers, as in the code for the
/// processor, since 0 would hide that it is.
pub(super) fn over_root(x: &Tensor, square: &Tensor, eps: f64) -> Result<Tensor> {
    let square = (square + (square * 0.0)?)?;
    x.broadcast_div(&(square + eps)?.sqrt()?)
}

/// Runs `f` on a thread of the pool where its operations on tensors of `device` are code for the processor: their many small
/// pieces of work do not begin with waking a thread each time.
pub fn on_pool<T: Send>(device: &Device, f: impl FnOnce() -> T + Send) -> T {
    if is_composed(device) { f() } else { rayon::scope(|_| f()) }
}

/// Stands at the door of all code that reads values where only the processor has them.
///
/// # Errors
/// The pass is composed.
pub(crate) fn require_fast() -> Result<()> {
    if FORCED.get() {
        bail!("a composed pass reached code that knows the processor only");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::{CustomOp1, DType, Var};

    use super::*;
    use crate::ops::{self, check};

    #[test]
    fn work_for_the_processor_is_on_the_pool_and_composed_work_stays() {
        assert!(rayon::current_thread_index().is_none());
        assert!(on_pool(&Device::Cpu, rayon::current_thread_index).is_some());
        assert!(with_composed(|| on_pool(&Device::Cpu, || is_composed(&Device::Cpu))), "the switch is this thread's");
    }

    #[test]
    fn the_switch_ends_with_its_call_even_by_a_panic() {
        assert!(!is_composed(&Device::Cpu));
        with_composed(|| {
            assert!(is_composed(&Device::Cpu));
            with_composed(|| assert!(is_composed(&Device::Cpu)));
            assert!(is_composed(&Device::Cpu), "the inner call does not end the outer one");
        });
        assert!(!is_composed(&Device::Cpu));
        assert!(std::panic::catch_unwind(|| with_composed(|| panic!("on purpose"))).is_err());
        assert!(!is_composed(&Device::Cpu));
    }

    #[test]
    fn another_thread_is_not_switched() {
        with_composed(|| std::thread::scope(|s| assert!(!s.spawn(|| is_composed(&Device::Cpu)).join().unwrap())));
    }

    /// An operation that someone forgot to compose.
    struct ProcessorOnly;

    impl CustomOp1 for ProcessorOnly {
        fn name(&self) -> &'static str {
            "processor-only"
        }

        fn cpu_fwd(
            &self,
            storage: &candle_core::CpuStorage,
            layout: &candle_core::Layout,
        ) -> Result<(candle_core::CpuStorage, candle_core::Shape)> {
            let y = ops::values::read(storage, layout)?.into_owned();
            Ok((ops::values::store(y, DType::F32)?, layout.shape().clone()))
        }
    }

    #[test]
    fn what_knows_the_processor_only_does_not_run_in_a_composed_pass() -> Result<()> {
        let x = Var::from_tensor(&check::tensor(&[3, 5], 1))?;
        assert!(x.apply_op1_no_bwd(&ProcessorOnly).is_ok());
        assert!(with_composed(|| x.apply_op1_no_bwd(&ProcessorOnly)).is_err());
        let graph = ops::activation::gelu(&x)?.sum_all()?;
        assert!(with_composed(|| graph.backward()).is_err());
        assert!(graph.backward().is_ok());
        Ok(())
    }
}
