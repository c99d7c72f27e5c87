//! Where a model computes: what a user asks for, and the device behind it or why there is none.
//!
//! A build knows CUDA or Metal only by its features `cuda` and `metal`. Nothing here panics where a GPU is missing.

use std::fmt;
use std::str::FromStr;

use candle_core::Device;

use crate::error::{Diagnose, Fault};

/// What a user asks for, written `auto`, `cpu`, `cuda`, `cuda:N` or `metal`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU of the kind that was compiled in where there is one, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// A CUDA device by its number, as `CUDA_VISIBLE_DEVICES` orders them.
    Cuda {
        /// From 0.
        ordinal: usize,
    },
    /// The system's first Metal device.
    Metal,
}

/// A device that cannot be computed on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// A word that names no device.
    #[error("`{text}` is none of auto, cpu, cuda, cuda:N, metal")]
    Unknown {
        /// What was written.
        text: String,
    },
    /// A kind of device that this build does not know.
    #[error("device `{device}` was asked for, but this build was made without the feature `{feature}`")]
    NotCompiled {
        /// What was asked for.
        device: DeviceChoice,
        /// The cargo feature that knows it.
        feature: &'static str,
    },
    /// No driver, or none that works.
    #[error("device `{device}` was asked for, but the driver says: {reason}")]
    Driver {
        /// What was asked for.
        device: DeviceChoice,
        /// The driver's own words.
        reason: String,
    },
    /// Fewer devices than the number asked for.
    #[error("device `{device}` was asked for, but there are {present} of its kind")]
    Absent {
        /// What was asked for.
        device: DeviceChoice,
        /// Devices of that kind.
        present: usize,
    },
    /// A device that is there but does not open.
    #[error("device `{device}` cannot be opened")]
    Open {
        /// What was asked for.
        device: DeviceChoice,
        /// The engine's own.
        source: candle_core::Error,
    },
}

impl Diagnose for DeviceError {
    fn fault(&self) -> Fault {
        match self {
            DeviceError::Open { .. } => Fault::Internal,
            _ => Fault::Input,
        }
    }

    fn hints(&self) -> Vec<String> {
        let processor = "`cpu` computes on the processor, `auto` takes a GPU only where there is one";
        match self {
            DeviceError::Unknown { .. } => vec!["for example `cpu` or `cuda:0`".into()],
            DeviceError::NotCompiled { feature, .. } => {
                vec![format!("build with `--features {feature}`, see docs/guide/devices.md"), processor.into()]
            }
            DeviceError::Driver { device: DeviceChoice::Cuda { .. }, .. } => {
                vec!["`nvidia-smi` shows whether the driver works".into(), processor.into()]
            }
            DeviceError::Absent { device: DeviceChoice::Cuda { .. }, present } if *present > 0 => {
                vec!["devices are counted from 0, as `CUDA_VISIBLE_DEVICES` orders them".into()]
            }
            _ => vec![processor.into()],
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda { ordinal } => write!(f, "cuda:{ordinal}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda { ordinal: 0 }),
            "metal" => Ok(Self::Metal),
            other => {
                // No sign: `usize` itself would take `+1`.
                let number = other.strip_prefix("cuda:").filter(|n| n.bytes().all(|b| b.is_ascii_digit()));
                let ordinal = number.and_then(|number| number.parse().ok());
                ordinal.map(|ordinal| Self::Cuda { ordinal }).ok_or_else(|| DeviceError::Unknown { text: text.into() })
            }
        }
    }
}

impl DeviceChoice {
    /// The device, ready to compute on.
    ///
    /// # Errors
    /// A kind that was not compiled in, a driver that does not answer, a device that is not there or does not open.
    /// `Auto` takes the processor instead where there is no device; one that is there but does not open is an error.
    pub fn open(self) -> Result<Device, DeviceError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda { ordinal } => {
                let present = cuda_devices(self)?;
                if ordinal >= present {
                    return Err(DeviceError::Absent { device: self, present });
                }
                Device::new_cuda(ordinal).map_err(|source| DeviceError::Open { device: self, source })
            }
            Self::Metal => {
                let present = metal_devices(self)?;
                if present == 0 {
                    return Err(DeviceError::Absent { device: self, present });
                }
                Device::new_metal(0).map_err(|source| DeviceError::Open { device: self, source })
            }
            Self::Auto => {
                let (cuda, metal) = (Self::Cuda { ordinal: 0 }, Self::Metal);
                if cuda_devices(cuda).is_ok_and(|present| present > 0) {
                    cuda.open()
                } else if metal_devices(metal).is_ok_and(|present| present > 0) {
                    metal.open()
                } else {
                    Ok(Device::Cpu)
                }
            }
        }
    }
}

/// CUDA devices that the driver shows.
#[cfg(all(feature = "cuda", not(janus_stand_in)))]
fn cuda_devices(asked: DeviceChoice) -> Result<usize, DeviceError> {
    let count = candle_core::cuda::cudarc::driver::CudaContext::device_count();
    let count = count.map_err(|e| DeviceError::Driver { device: asked, reason: e.to_string() })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// The one of `tests/device/stand_in`.
#[cfg(janus_stand_in)]
#[expect(clippy::unnecessary_wraps)]
fn cuda_devices(_asked: DeviceChoice) -> Result<usize, DeviceError> {
    Ok(1)
}

#[cfg(not(any(feature = "cuda", janus_stand_in)))]
fn cuda_devices(asked: DeviceChoice) -> Result<usize, DeviceError> {
    Err(DeviceError::NotCompiled { device: asked, feature: "cuda" })
}

/// Metal devices of the system; candle itself panics where there are none.
#[cfg(feature = "metal")]
fn metal_devices(_asked: DeviceChoice) -> Result<usize, DeviceError> {
    Ok(candle_metal_kernels::metal::Device::all().len())
}

#[cfg(not(feature = "metal"))]
fn metal_devices(asked: DeviceChoice) -> Result<usize, DeviceError> {
    Err(DeviceError::NotCompiled { device: asked, feature: "metal" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_as_they_are_written() {
        let choices = [
            DeviceChoice::Auto,
            DeviceChoice::Cpu,
            DeviceChoice::Cuda { ordinal: 0 },
            DeviceChoice::Cuda { ordinal: 13 },
            DeviceChoice::Metal,
        ];
        for choice in choices {
            assert_eq!(choice.to_string().parse::<DeviceChoice>().unwrap(), choice);
        }
        assert_eq!("cuda".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cuda { ordinal: 0 });
    }

    #[test]
    fn other_words_are_refused() {
        for text in ["", "gpu", "CPU", "cuda:", "cuda:-1", "cuda:+1", "cuda: 1", "cuda:99999999999999999999", "metal:0"]
        {
            let error = text.parse::<DeviceChoice>().unwrap_err();
            assert!(matches!(error, DeviceError::Unknown { .. }), "{text}: {error}");
            assert_eq!(error.fault(), Fault::Input);
            assert!(!error.hints().is_empty());
        }
    }

    #[test]
    fn the_processor_is_always_there() {
        assert!(DeviceChoice::Cpu.open().unwrap().is_cpu());
    }

    /// Whatever was compiled in and whatever is present: a device or an error with a hint, never a panic.
    #[test]
    fn what_is_not_there_is_an_error_of_the_input() {
        for choice in [DeviceChoice::Cuda { ordinal: 4096 }, DeviceChoice::Metal] {
            match choice.open() {
                Ok(device) => assert!(device.is_metal() && choice == DeviceChoice::Metal),
                Err(error) => {
                    assert_eq!(error.fault(), Fault::Input, "{error}");
                    assert!(error.to_string().contains(&choice.to_string()), "{error}");
                    assert!(!error.hints().is_empty());
                }
            }
        }
    }

    #[cfg(not(any(feature = "cuda", feature = "metal", janus_stand_in)))]
    #[test]
    fn a_build_for_the_processor_takes_it_and_says_what_it_lacks() {
        assert!(DeviceChoice::Auto.open().unwrap().is_cpu());
        for (choice, feature) in [(DeviceChoice::Cuda { ordinal: 0 }, "cuda"), (DeviceChoice::Metal, "metal")] {
            let error = choice.open().unwrap_err();
            assert!(matches!(&error, DeviceError::NotCompiled { feature: f, .. } if *f == feature), "{error}");
            assert!(error.hints()[0].contains(&format!("--features {feature}")));
        }
    }
}
