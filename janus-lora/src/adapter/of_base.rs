//! Adapters as a base takes them from their folders.

use std::path::Path;

use candle_core::DType;

use super::{Adapter, check_fingerprint};
use crate::base::Base;
use crate::error::Result;
use crate::status::Status;

impl Adapter {
    /// Reads an adapter and checks that it belongs to `base`; warns where files ask for something in vain.
    ///
    /// # Errors
    /// As [`Adapter::read`], and an adapter of another base.
    pub fn read_for(base: &Base, folder: &Path, status: &dyn Status) -> Result<Self> {
        let adapter = Self::read(folder, base.config(), base.checkpoint().is_tied())?;
        for remark in &adapter.remarks {
            status.warn(&format!("`{}`: {remark}", folder.display()));
        }
        adapter.check_base_copies(&|name| Ok(base.checkpoint().read(name, DType::F32)?))?;
        if adapter.note.as_ref().is_some_and(|note| note.base.is_some()) {
            check_fingerprint(adapter.note.as_ref(), &base.fingerprint(status)?)?;
        } else {
            let folder = folder.display();
            status.warn(&format!("`{folder}` does not say which base it was trained on: it is taken to be this one"));
        }
        Ok(adapter)
    }
}
