//! What is asked for.

use crate::cache::TAGS;
use crate::units::{GRANULE, StreamId};

bitflags::bitflags! {
    /// How a request is to be served.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct AllocFlags: u8 {
        /// Fill the block with zeros, in stream order.
        const ZEROED = 1;
        /// Serve the request from what is held already: take nothing from the device and wait for nothing. Fails with
        /// [`Error::OutOfMemory`](crate::Error::OutOfMemory) where that does not do, without asking observers.
        const NO_GROW = 2;
        /// Give the block a physical allocation of its own, from the driver's plain allocator, which nothing else shares: one whose memory is to be
        /// exported to other processes or registered with other devices. Rounded up to 2 MiB, aligned to 512 bytes, and used again only
        /// for another such request of the same size.
        const DEDICATED = 4;
    }
}

/// How long a block will live, as far as the caller knows. A hint for where to put it: what lives long lies apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Lifetime {
    /// Not known.
    #[default]
    Unknown,
    /// Within a step: activations, workspaces.
    Transient,
    /// Over many steps: weights, optimizer state, caches.
    Persistent,
}

/// A name for what memory is used for, from [`Allocator::tag`](crate::Allocator::tag). The default is no tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Tag(pub(crate) u8);

impl Tag {
    /// No tag.
    pub const NONE: Tag = Tag(0);

    /// The tag's number, as statistics give it.
    pub fn number(self) -> u8 {
        self.0
    }

    /// The tag with this number, if there can be one: for those who keep numbers.
    pub fn from_number(number: u8) -> Option<Tag> {
        ((number as usize) < TAGS).then_some(Tag(number))
    }
}

/// A request for memory: a size, and what else matters.
///
/// ```
/// use stratalloc::{AllocRequest, Lifetime, StreamId};
/// let request = AllocRequest::new(64 << 20).stream(StreamId(7)).alignment(4096).lifetime(Lifetime::Persistent);
/// assert_eq!(request.size, 64 << 20);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub struct AllocRequest {
    /// Bytes, at least 1.
    pub size: u64,
    /// A power of two up to 2 MiB. Every block is aligned to 512 bytes at least.
    pub alignment: u64,
    /// The stream that uses the block first and whose order its free takes effect in.
    pub stream: StreamId,
    /// The device's ordinal in the allocator.
    pub device: usize,
    /// What the memory is for.
    pub tag: Tag,
    /// How long the block will live.
    pub lifetime: Lifetime,
    /// How the request is to be served.
    pub flags: AllocFlags,
}

impl AllocRequest {
    /// So many bytes on device 0 and the default stream.
    #[inline]
    pub const fn new(size: u64) -> AllocRequest {
        AllocRequest {
            size,
            alignment: GRANULE,
            stream: StreamId::DEFAULT,
            device: 0,
            tag: Tag::NONE,
            lifetime: Lifetime::Unknown,
            flags: AllocFlags::empty(),
        }
    }

    /// On this device.
    #[inline]
    pub const fn device(mut self, device: usize) -> AllocRequest {
        self.device = device;
        self
    }

    /// For this stream.
    #[inline]
    pub const fn stream(mut self, stream: StreamId) -> AllocRequest {
        self.stream = stream;
        self
    }

    /// At a multiple of this.
    #[inline]
    pub const fn alignment(mut self, alignment: u64) -> AllocRequest {
        self.alignment = alignment;
        self
    }

    /// For this purpose.
    #[inline]
    pub const fn tag(mut self, tag: Tag) -> AllocRequest {
        self.tag = tag;
        self
    }

    /// Expected to live so long.
    #[inline]
    pub const fn lifetime(mut self, lifetime: Lifetime) -> AllocRequest {
        self.lifetime = lifetime;
        self
    }

    /// To be served so.
    #[inline]
    pub const fn flags(mut self, flags: AllocFlags) -> AllocRequest {
        self.flags = flags;
        self
    }

    /// Whether nothing but size, stream and tag matters: what magazines can serve.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.alignment <= GRANULE
            && self.alignment.is_power_of_two()
            && self.flags.is_empty()
            && self.lifetime as u8 != Lifetime::Persistent as u8
    }
}
