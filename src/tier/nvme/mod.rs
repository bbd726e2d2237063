//! The tier of files on NVMe disks. With the feature `nvme`, on Linux.

mod spec;

use std::sync::Arc;

use super::{Tier, TierError};

pub use spec::{Means, NvmePath, NvmeSpec};

/// Sets a tier of files up.
///
/// # Errors
/// [`TierError::Unusable`].
pub fn open(spec: &NvmeSpec) -> Result<Arc<dyn Tier>, TierError> {
    let _ = spec;
    Err(TierError::Unusable { tier: "nvme".to_string(), reason: "built without the feature `nvme`".to_string() })
}
