//! What programs say of their steps, and learn of the plans made for them. See [`crate::plan`].

use super::Allocator;
use crate::error::Result;
use crate::plan::{self, PlanStats};

impl Allocator {
    /// Says that a step of the program begins here, of training or of decoding: from here on it asks for what it asked for after the last
    /// such word. With plans on (the key `plan`), a step is then known after it was done once rather than twice. Costs nothing else, and where it is
    /// not true nothing but the plan is wrong. Any thread may say it, once a step.
    pub fn step(&self) {
        self.shared.devices.iter().for_each(|device| device.mark_step());
    }

    /// The steps that plans are made for on a device, as bytes for [`Allocator::import_plan`] in the program's next run.
    pub fn export_plan(&self, device: usize) -> Result<Vec<u8>> {
        Ok(plan::encode(&self.device(device)?.export_plan()?))
    }

    /// Takes over what [`Allocator::export_plan`] gave: steps to look out for on a device, so that they are planned from the first time on. Bytes that
    /// are anything else are refused, and then nothing has changed. Returns how many steps there are.
    pub fn import_plan(&self, device: usize, bytes: &[u8]) -> Result<usize> {
        let device = self.device(device)?;
        let export = plan::decode(bytes)?;
        let count = export.steps.len();
        device.import_plan(export)?;
        Ok(count)
    }

    /// What plans have done on a device; nothing where they are off.
    pub fn plan_stats(&self, device: usize) -> Result<PlanStats> {
        Ok(self.device(device)?.plan_stats())
    }
}
