//! A device in trouble, and what carries out the advice.

use std::sync::Arc;

use stratalloc::driver::fault::FaultDriver;
use stratalloc::driver::soft::{Access, Backing, SoftDevice, SoftDeviceBuilder};
use stratalloc::driver::{ChunkHandle, Driver, Location};
use stratalloc::{
    AllocFlags, AllocRequest, Allocator, DevicePtr, Error, Lifetime, OomExplanation, OomRemedy, PoolId, StreamId, Tag,
};

use crate::common::rig::{MIB, allocator_on};

/// What a graph's memory is in.
pub const POOL: PoolId = PoolId(3, 1);

/// A device, what is on it, and the request that finds no room.
pub struct Scene {
    pub device: Arc<SoftDevice>,
    pub fault: Arc<FaultDriver<SoftDevice>>,
    pub allocator: Allocator,
    pub request: AllocRequest,
    /// Live blocks, with what was asked for.
    pub held: Vec<(DevicePtr, AllocRequest)>,
    /// Memory that somebody else took from the device.
    pub others: Vec<ChunkHandle>,
}

pub fn device(mib: u64) -> SoftDeviceBuilder {
    SoftDevice::builder(mib * MIB).backing(Backing::AddressesOnly).checker(true)
}

impl Scene {
    /// `more` comes after `text` and overrides it.
    pub fn new(builder: SoftDeviceBuilder, text: &str, more: &str) -> Scene {
        let device = builder.build().unwrap();
        let fault = Arc::new(FaultDriver::new(device.clone()));
        let allocator = allocator_on(fault.clone(), &format!("{text},{more}"));
        Scene { device, fault, allocator, request: AllocRequest::new(1), held: Vec::new(), others: Vec::new() }
    }

    pub fn asking(mut self, request: AllocRequest) -> Scene {
        self.request = request;
        self
    }

    pub fn hold(&mut self, request: AllocRequest) -> DevicePtr {
        self.request = request;
        self.ask().unwrap()
    }

    pub fn free(&mut self, ptr: DevicePtr) {
        let at = self.held.iter().position(|&(held, _)| held == ptr).expect("advice names live blocks");
        let (_, request) = self.held.swap_remove(at);
        self.device.note_free(ptr, request.size);
        self.allocator.raw_free(ptr).unwrap();
    }

    /// Work on a live block that is not done before somebody waits for it.
    pub fn busy(&self, stream: StreamId, ptr: DevicePtr) {
        let (_, request) = self.held.iter().find(|&&(held, _)| held == ptr).unwrap();
        if stream != request.stream {
            let event = self.device.create_event().unwrap();
            self.device.record_event(event, request.stream).unwrap();
            self.device.wait_event(stream, event).unwrap();
            self.device.destroy_event(event).unwrap();
            self.allocator.record_stream(ptr, stream).unwrap();
        }
        self.device.launch(stream, &[Access::write(ptr, request.size)], 1_000_000_000).unwrap();
    }

    /// A block that a private pool has free.
    pub fn fill_pool(&mut self, size: u64, captured: bool) {
        match captured {
            true => self.allocator.begin_private_pool(0, POOL, |_| true).unwrap(),
            false => self.allocator.route_private_pool(0, POOL, |_| true).unwrap(),
        }
        let ptr = self.hold(AllocRequest::new(size));
        self.allocator.end_private_pool(0, POOL).unwrap();
        self.free(ptr);
    }

    /// The request as it is now.
    pub fn ask(&mut self) -> Result<DevicePtr, Error> {
        let ptr = self.allocator.raw_alloc(self.request)?;
        self.device.note_alloc(ptr, self.request.size, self.request.stream);
        self.held.push((ptr, self.request));
        Ok(ptr)
    }

    /// Asks in vain.
    #[track_caller]
    pub fn fail(&mut self) -> (Error, OomExplanation) {
        let error = self.ask().expect_err("there is no room");
        self.allocator.validate(0).unwrap().unwrap();
        let explanation = self.allocator.last_oom(0).unwrap().expect("what failed is explained");
        if let Error::OutOfMemory(shortage) = &error {
            assert_eq!(shortage.explanation, explanation);
        }
        (error, explanation)
    }

    /// Does what is advised, but for a new configuration.
    pub fn carry_out(&mut self, remedy: &OomRemedy) {
        let flags = self.request.flags;
        match remedy {
            OomRemedy::Retry => self.fault.clear(),
            OomRemedy::Synchronize(streams) => {
                streams.iter().for_each(|&stream| self.device.synchronize_stream(stream).unwrap());
            }
            OomRemedy::AllowGrowth => self.request.flags = flags - AllocFlags::NO_GROW,
            OomRemedy::EmptyCache => assert!(self.allocator.empty_cache(0).unwrap() > 0),
            OomRemedy::EndCapture => self.allocator.end_capture(0).unwrap(),
            OomRemedy::LowerAlignment(to) => self.request.alignment = *to,
            OomRemedy::DropPersistent => self.request.lifetime = Lifetime::Unknown,
            OomRemedy::DropDedicated => self.request.flags = flags - AllocFlags::DEDICATED,
            OomRemedy::LendPool(pool) => self.allocator.lend_private_pool(0, *pool, true).unwrap(),
            OomRemedy::RaiseLimit(to) => self.allocator.set_limit(0, (*to).into()).unwrap(),
            OomRemedy::RaiseTagLimit { tag, to } => {
                let tag = Tag::from_number(*tag).unwrap();
                self.allocator.set_tag_limit(0, tag, Some((*to).into())).unwrap();
            }
            OomRemedy::FreePins(blocks) | OomRemedy::Free(blocks) => {
                blocks.iter().for_each(|block| self.free(block.ptr))
            }
            OomRemedy::FreeTag(tag) => {
                let tagged = self.held.iter().filter(|(_, held)| held.tag.number() == *tag).map(|&(ptr, _)| ptr);
                tagged.collect::<Vec<_>>().into_iter().for_each(|ptr| self.free(ptr));
            }
            OomRemedy::ReleasePool(pool) => {
                for _ in 0..self.allocator.private_pool_users(0, *pool).unwrap() {
                    self.allocator.release_private_pool(0, *pool).unwrap();
                }
            }
            OomRemedy::FreeElsewhere(bytes) => {
                for _ in 0..bytes.div_ceil(2 * MIB) {
                    self.device.release(self.others.pop().unwrap()).unwrap();
                }
            }
            OomRemedy::Split(piece) => {
                let pieces = self.request.size.div_ceil(*piece);
                self.request.size = *piece;
                (1..pieces).for_each(|_| _ = self.ask().unwrap());
            }
            OomRemedy::AskForLess(most) => self.request.size = *most,
            other => panic!("{other} is nothing to be done here"),
        }
    }

    /// Somebody else takes memory, 2 MiB at a time.
    pub fn others_take(&mut self, mib: u64) {
        self.others.extend((0..mib / 2).map(|_| self.device.create(2 * MIB, Location::Device).unwrap()));
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.fault.clear();
        for chunk in self.others.drain(..) {
            let _ = self.device.release(chunk);
        }
        if !std::thread::panicking() {
            assert_eq!(self.device.reports(), [], "what was handed out was free");
        }
    }
}
