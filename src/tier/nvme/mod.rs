//! The tier of files on NVMe disks. With the feature `nvme`, on Linux.
//!
//! - [`NvmeSpec`] says what it is to be, [`open`] makes it.
//! - `files/` is the door to the disk: files that nobody else can open by name, read and written through io_uring or by threads. `probe` finds
//!   out what works here.
//! - `layout` says which byte lies in which file, `places` which bytes are taken.
//! - `flights` cuts transfers into pieces, tries again what was broken off, and gathers the ends.
//! - `cipher` encrypts, where asked to.
//! - `tier` puts these together as a [`Tier`].
//!
//! Nothing of it runs by itself, but for the threads where there is no io_uring: a transfer's first pieces are on their way when it starts, and the
//! rest follows as somebody asks how it is.

#[cfg(all(feature = "nvme", target_os = "linux"))]
mod cipher;
#[cfg(all(feature = "nvme", target_os = "linux"))]
mod files;
#[cfg(all(feature = "nvme", target_os = "linux"))]
mod flights;
#[cfg(all(feature = "nvme", target_os = "linux"))]
mod layout;
#[cfg(all(feature = "nvme", target_os = "linux"))]
mod places;
#[cfg(all(feature = "nvme", target_os = "linux"))]
mod probe;
mod spec;
#[cfg(all(test, feature = "nvme", target_os = "linux"))]
mod tests;
#[cfg(all(feature = "nvme", target_os = "linux"))]
mod tier;

use std::sync::Arc;

use super::{Tier, TierError};

pub use spec::{Means, NvmePath, NvmeSpec};

/// What reports call the tier.
const NAME: &str = "nvme";

/// Sets a tier of files up.
///
/// # Errors
/// [`TierError::Unusable`]: a folder that is not there or not ours to write to, no room, nonsense in `spec`, a build without the feature `nvme`.
pub fn open(spec: &NvmeSpec) -> Result<Arc<dyn Tier>, TierError> {
    #[cfg(all(feature = "nvme", target_os = "linux"))]
    return Ok(Arc::new(tier::NvmeTier::open(spec)?));
    #[cfg(not(all(feature = "nvme", target_os = "linux")))]
    {
        spec.check().map_err(unusable)?;
        Err(unusable("it needs Linux, and a build with the feature `nvme`".to_string()))
    }
}

fn unusable(reason: String) -> TierError {
    TierError::Unusable { tier: NAME.to_string(), reason }
}

#[cfg(all(feature = "nvme", target_os = "linux"))]
fn io_error(what: String, reason: &str, errno: i32) -> TierError {
    TierError::Io { tier: NAME.to_string(), what, reason: reason.to_string(), errno }
}
