//! [`Driver`] for the software device: each method begins its call, checks, and changes the tables.

use std::os::fd::OwnedFd;

use super::SoftDevice;
use super::memory::{RegionKind, invalid};
use super::report::{AccessKind, OpKind, Place};
use super::schedule::{Action, Pattern, Recorded};
use super::state::{Call, State};
use super::store::HOST_PAGE;
use crate::driver::call::CallKind;
use crate::driver::kernels::{self, COPIES_A_LAUNCH};
use crate::driver::{
    CaptureStatus, ChunkHandle, CopyOp, DeviceProperties, Driver, DriverError, DriverErrorKind, DriverResult, EventId,
    EventStatus, HostPtr, Location, MemoryInfo,
};
use crate::units::{DevicePtr, StreamId};

/// A call about a stream or an event.
fn handle_call(kind: CallKind, first: u64, second: u64) -> Call {
    Call::new(kind).args(first, second)
}

fn location_code(location: Location) -> u64 {
    match location {
        Location::Device => 0,
        Location::Host => 1,
        Location::Peer(ordinal) => 2 + u64::from(ordinal),
    }
}

impl Driver for SoftDevice {
    fn properties(&self) -> &DeviceProperties {
        &self.properties
    }

    fn memory_info(&self) -> DriverResult<MemoryInfo> {
        let state = self.enter(Call::new(CallKind::MemoryInfo))?;
        let total = state.memory.rules.capacity;
        Ok(MemoryInfo { free: total - state.memory.used, total })
    }

    fn clock_ns(&self) -> u64 {
        let schedule = &mut self.state.lock().schedule;
        schedule.tick();
        schedule.now_ns()
    }

    // ---- virtual memory -------------------------------------------------------------------------------------------

    fn reserve(&self, size: u64, alignment: u64) -> DriverResult<DevicePtr> {
        let kind = CallKind::Reserve;
        let mut state = self.enter(Call::new(kind).range(DevicePtr::NULL, size).args(alignment, 0))?;
        state.memory.reserve(size, alignment, kind.name())
    }

    fn unreserve(&self, ptr: DevicePtr, size: u64) -> DriverResult<()> {
        let kind = CallKind::Unreserve;
        let mut state = self.enter(Call::new(kind).range(ptr, size))?;
        state.memory.unreserve(ptr, size, kind.name())
    }

    fn create(&self, size: u64, location: Location) -> DriverResult<ChunkHandle> {
        let kind = CallKind::Create;
        let host = location == Location::Host;
        let call = Call { host, ..Call::new(kind).range(DevicePtr::NULL, size).args(location_code(location), 0) };
        self.enter(call)?.memory.create(size, location, kind.name())
    }

    fn release(&self, chunk: ChunkHandle) -> DriverResult<()> {
        let kind = CallKind::Release;
        let mut state = self.state.lock();
        let (size, host) = state.memory.chunk_cost(chunk);
        state.begin(Call { host, size, ..handle_call(kind, chunk.0, 0) })?;
        let ended = state.memory.release(chunk, kind.name())?;
        state.forget(ended);
        Ok(())
    }

    fn map(&self, ptr: DevicePtr, size: u64, chunk: ChunkHandle, offset: u64) -> DriverResult<()> {
        let kind = CallKind::Map;
        let mut state = self.enter(Call::new(kind).range(ptr, size).args(chunk.0, offset))?;
        state.memory.map(ptr, size, chunk, offset, kind.name())
    }

    fn unmap(&self, ptr: DevicePtr, size: u64) -> DriverResult<()> {
        let kind = CallKind::Unmap;
        let mut state = self.state.lock();
        let mappings = state.memory.mappings_in(ptr, size);
        state.begin(Call { mappings, ..Call::new(kind).range(ptr, size) })?;
        let ended = state.memory.unmap(ptr, size, kind.name())?;
        if let Some(checker) = &mut state.checker {
            checker.unmapped(ptr, size);
        }
        state.forget(ended);
        Ok(())
    }

    fn set_access(&self, ptr: DevicePtr, size: u64) -> DriverResult<()> {
        let kind = CallKind::SetAccess;
        let mut state = self.state.lock();
        let host = state.memory.is_host(ptr);
        let mappings = state.memory.mappings_in(ptr, size);
        state.begin(Call { host, mappings, ..Call::new(kind).range(ptr, size) })?;
        state.memory.set_access(ptr, size, kind.name())
    }

    fn export(&self, chunk: ChunkHandle) -> DriverResult<OwnedFd> {
        let kind = CallKind::Export;
        self.enter(handle_call(kind, chunk.0, 0))?.memory.export(chunk, kind.name())
    }

    // ---- plain and host memory ------------------------------------------------------------------------------------

    fn alloc_plain(&self, size: u64) -> DriverResult<DevicePtr> {
        let kind = CallKind::AllocPlain;
        let mut state = self.enter(Call::new(kind).range(DevicePtr::NULL, size))?;
        state.memory.alloc_plain(size, kind.name()).map(DevicePtr)
    }

    fn free_plain(&self, ptr: DevicePtr) -> DriverResult<()> {
        self.free(CallKind::FreePlain, ptr, RegionKind::Plain)
    }

    fn alloc_host(&self, size: u64) -> DriverResult<HostPtr> {
        let kind = CallKind::AllocHost;
        let mut state = self.enter(Call { host: true, ..Call::new(kind).range(DevicePtr::NULL, size) })?;
        state.memory.alloc_host(size, kind.name()).map(|ptr| HostPtr(ptr as usize))
    }

    fn free_host(&self, ptr: HostPtr) -> DriverResult<()> {
        self.free(CallKind::FreeHost, DevicePtr(ptr.0 as u64), RegionKind::Host)
    }

    fn pin_host(&self, ptr: HostPtr, size: u64) -> DriverResult<()> {
        let kind = CallKind::PinHost;
        let ptr = DevicePtr(ptr.0 as u64);
        if !ptr.0.is_multiple_of(HOST_PAGE) || !size.is_multiple_of(HOST_PAGE) {
            return Err(invalid(kind.name(), format!("{size} bytes at {ptr} are not whole pages of the host")));
        }
        self.register(kind, ptr, size)
    }

    fn unpin_host(&self, ptr: HostPtr) -> DriverResult<()> {
        self.free(CallKind::UnpinHost, DevicePtr(ptr.0 as u64), RegionKind::Registered)
    }

    // ---- streams and events ---------------------------------------------------------------------------------------

    fn create_stream(&self) -> DriverResult<StreamId> {
        Ok(self.enter(Call::new(CallKind::CreateStream))?.schedule.create_stream(false))
    }

    fn destroy_stream(&self, stream: StreamId) -> DriverResult<()> {
        let kind = CallKind::DestroyStream;
        let mut state = self.enter(handle_call(kind, stream.0, 0))?;
        let index = state.schedule.stream(stream, kind.name())?;
        if stream == StreamId::DEFAULT {
            return Err(invalid(kind.name(), "the default stream cannot be destroyed"));
        }
        if state.schedule.streams[index].capture.is_some() {
            return Err(DriverError::new(
                DriverErrorKind::Capturing,
                kind.name(),
                format!("{stream} is being captured"),
            ));
        }
        state.schedule.destroy_stream(index);
        Ok(())
    }

    fn synchronize_stream(&self, stream: StreamId) -> DriverResult<()> {
        let kind = CallKind::SynchronizeStream;
        let mut state = self.enter(handle_call(kind, stream.0, 0))?;
        self.wait(&mut state, |state| state.synchronize_stream(stream, kind.name()))
    }

    fn synchronize_device(&self) -> DriverResult<()> {
        let kind = CallKind::SynchronizeDevice;
        let mut state = self.enter(Call::new(kind))?;
        self.wait(&mut state, |state| state.synchronize_device(kind.name()))
    }

    fn create_event(&self) -> DriverResult<EventId> {
        Ok(self.enter(Call::new(CallKind::CreateEvent))?.schedule.create_event())
    }

    fn destroy_event(&self, event: EventId) -> DriverResult<()> {
        let kind = CallKind::DestroyEvent;
        self.enter(handle_call(kind, event.0, 0))?.schedule.destroy_event(event, kind.name())
    }

    fn record_event(&self, event: EventId, stream: StreamId) -> DriverResult<()> {
        let call = CallKind::RecordEvent.name();
        let state = &mut *self.enter(handle_call(CallKind::RecordEvent, event.0, stream.0))?;
        state.schedule.event(event, call)?;
        let index = state.schedule.stream(stream, call)?;
        if let Some(capture) = state.schedule.streams[index].capture {
            state.check_capture(capture, call)?;
            state.schedule.set_event(event, Recorded::Captured(capture));
            return Ok(());
        }
        state.join_default(index);
        let clock = state.checker.as_mut().map(|checker| checker.recorded(stream)).unwrap_or_default();
        let record = state.schedule.record(event, index, clock);
        state.schedule.submit(index, Action::Record(record), 0, &state.memory);
        Ok(())
    }

    fn query_event(&self, event: EventId) -> DriverResult<EventStatus> {
        let call = CallKind::QueryEvent.name();
        let state = &mut *self.enter(handle_call(CallKind::QueryEvent, event.0, 0))?;
        state.no_capture(call)?;
        match state.schedule.event(event, call)? {
            Recorded::Last(record) if !state.schedule.is_seen(record) => Ok(EventStatus::Pending),
            Recorded::Last(record) => {
                if let Some(checker) = &mut state.checker {
                    checker.host_saw(&record.clock);
                }
                Ok(EventStatus::Complete)
            }
            Recorded::Never | Recorded::Captured(_) => Ok(EventStatus::Complete),
        }
    }

    fn wait_event(&self, stream: StreamId, event: EventId) -> DriverResult<()> {
        let call = CallKind::WaitEvent.name();
        let state = &mut *self.enter(handle_call(CallKind::WaitEvent, event.0, stream.0))?;
        let index = state.schedule.stream(stream, call)?;
        let capture = state.schedule.streams[index].capture;
        match (state.schedule.event(event, call)?.clone(), capture) {
            (Recorded::Never, _) => {}
            (Recorded::Captured(id), None) => {
                state.check_capture(id, call)?;
                state.schedule.streams[index].capture = Some(id);
            }
            (Recorded::Captured(id), Some(own)) if id == own => state.check_capture(id, call)?,
            (_, Some(_)) => {
                let detail = "a capturing stream can wait only for events of its capture";
                return Err(DriverError::new(DriverErrorKind::Capturing, call, detail));
            }
            (Recorded::Last(record), None) => {
                if let Some(checker) = &mut state.checker {
                    checker.waits(stream, &record.clock);
                }
                state.schedule.submit(index, Action::Wait(record), 0, &state.memory);
            }
        }
        Ok(())
    }

    fn synchronize_event(&self, event: EventId) -> DriverResult<()> {
        let call = CallKind::SynchronizeEvent.name();
        let mut guard = self.enter(handle_call(CallKind::SynchronizeEvent, event.0, 0))?;
        guard.no_capture(call)?;
        if let Recorded::Last(record) = guard.schedule.event(event, call)?.clone() {
            self.wait(&mut guard, |state| Ok(state.schedule.synchronize_record(&record, &state.memory)))?;
            let state = &mut *guard;
            if let Some(checker) = &mut state.checker {
                checker.host_saw(&record.clock);
            }
        }
        guard.intact(call)
    }

    fn capture_status(&self, stream: StreamId) -> DriverResult<CaptureStatus> {
        let kind = CallKind::CaptureStatus;
        let state = self.enter(handle_call(kind, stream.0, 0))?;
        let index = state.schedule.stream(stream, kind.name())?;
        Ok(match state.schedule.streams[index].capture {
            None => CaptureStatus::None,
            Some(id) if state.captures.is_invalidated(id) => CaptureStatus::Invalidated,
            Some(id) => CaptureStatus::Active(id),
        })
    }

    // ---- data ------------------------------------------------------------------------------------------------------

    fn copy(&self, ops: &[CopyOp], stream: StreamId) -> DriverResult<()> {
        let first = ops.first().map_or((DevicePtr::NULL, DevicePtr::NULL), |op| (op.dst, op.src));
        let total = ops.iter().fold(0u64, |sum, op| sum.saturating_add(op.size));
        let mut state = self.state.lock();
        let source = state.memory.label(first.1);
        state.begin(Call::new(CallKind::Copy).range(first.0, total).args(stream.0, source))?;
        let link = state.memory.is_far(first.0) || state.memory.is_far(first.1);
        let duration = state.settings.latency.copy_ns(total, link);
        state.submit(stream, Action::Copy(ops.to_vec()), duration, CallKind::Copy.name())
    }

    fn fill(&self, ptr: DevicePtr, size: u64, byte: u8, stream: StreamId) -> DriverResult<()> {
        let mut state = self.enter(Call::new(CallKind::Fill).range(ptr, size).args(stream.0, u64::from(byte)))?;
        let duration = state.settings.latency.fill_ns(size);
        state.submit(
            stream,
            Action::Fill { ptr, size, pattern: Pattern::of_byte(byte) },
            duration,
            CallKind::Fill.name(),
        )
    }

    fn copy_blocks(&self, ops: &[CopyOp], stream: StreamId) -> DriverResult<()> {
        ops.chunks(COPIES_A_LAUNCH).try_for_each(|ops| self.launch_own(kernels::Call::CopyBlocks(ops.to_vec()), stream))
    }

    fn fill_words(&self, ptr: DevicePtr, size: u64, pattern: u32, stream: StreamId) -> DriverResult<()> {
        self.launch_own(kernels::Call::FillWords { ptr, size, pattern }, stream)
    }

    fn check_words(
        &self,
        ptr: DevicePtr,
        size: u64,
        pattern: u32,
        result: HostPtr,
        stream: StreamId,
    ) -> DriverResult<()> {
        let result = DevicePtr(result.0 as u64);
        self.launch_own(kernels::Call::CheckWords { ptr, size, pattern, result }, stream)
    }

    fn checksum(&self, ptr: DevicePtr, size: u64, result: HostPtr, stream: StreamId) -> DriverResult<()> {
        let result = DevicePtr(result.0 as u64);
        self.launch_own(kernels::Call::Checksum { ptr, size, result }, stream)
    }

    fn quantize(
        &self,
        src: DevicePtr,
        dst: DevicePtr,
        size: u64,
        quant: kernels::Quant,
        stream: StreamId,
    ) -> DriverResult<()> {
        let requant = kernels::Requant { src, dst, size, format: quant.format() };
        self.launch_own(kernels::Call::Quantize(requant), stream)
    }

    fn dequantize(
        &self,
        src: DevicePtr,
        dst: DevicePtr,
        size: u64,
        quant: kernels::Quant,
        stream: StreamId,
    ) -> DriverResult<()> {
        let requant = kernels::Requant { src, dst, size, format: quant.format() };
        self.launch_own(kernels::Call::Dequantize(requant), stream)
    }

    fn write(&self, dst: DevicePtr, src: &[u8], stream: StreamId) -> DriverResult<()> {
        let size = src.len() as u64;
        let mut state = self.enter(Call::new(CallKind::Write).range(dst, size).args(stream.0, 0))?;
        let duration = state.settings.latency.copy_ns(size, true);
        let bytes = if state.memory.store.has_bytes() { src.to_vec() } else { Vec::new() };
        state.submit(stream, Action::Write { dst, bytes, size }, duration, CallKind::Write.name())
    }

    fn read(&self, dst: &mut [u8], src: DevicePtr, stream: StreamId) -> DriverResult<()> {
        let (call, size) = (CallKind::Read.name(), dst.len() as u64);
        let mut guard = self.enter(Call::new(CallKind::Read).range(src, size).args(stream.0, 0))?;
        guard.memory.resolve(src, size, call)?;
        let index = guard.schedule.stream(stream, call)?;
        if guard.schedule.streams[index].capture.is_none() {
            guard.join_default(index);
        }
        self.wait(&mut guard, |state| state.synchronize_stream(stream, call))?;
        let state = &mut *guard;
        let extents = state.memory.resolve(src, size, call)?;
        let duration = state.settings.latency.copy_ns(size, true);
        state.schedule.stall(duration);
        if let Some(checker) = &mut state.checker {
            let (what, access) = (OpKind::HostRead, AccessKind::Read);
            let place = Place { stream, op: checker.next_op(stream), what, access, ptr: src, size };
            checker.access(place, &extents);
            checker.host_saw_stream(stream);
        }
        // SAFETY: the range was resolved above, and the device's lock has been held since.
        unsafe { state.memory.store.read(dst, src.0) };
        Ok(())
    }
}

impl SoftDevice {
    /// Launches one of the library's own kernels, which runs in stream order. On a device without bytes it is checked, and does nothing.
    pub fn launch_own(&self, call: kernels::Call, stream: StreamId) -> DriverResult<()> {
        use kernels::Call as Own;
        let (kind, ptr, size) = match &call {
            Own::CopyBlocks(ops) => {
                let total = ops.iter().fold(0u64, |sum, op| sum.saturating_add(op.size));
                (CallKind::CopyBlocks, ops.first().map_or(DevicePtr::NULL, |op| op.dst), total)
            }
            Own::FillWords { ptr, size, .. } => (CallKind::FillWords, *ptr, *size),
            Own::CheckWords { ptr, size, .. } => (CallKind::CheckWords, *ptr, *size),
            Own::Checksum { ptr, size, .. } => (CallKind::Checksum, *ptr, *size),
            Own::Quantize(requant) => (CallKind::Quantize, requant.src, requant.size),
            Own::Dequantize(requant) => (CallKind::Dequantize, requant.dst, requant.size),
        };
        let word = match &call {
            Own::CopyBlocks(ops) => ops.len() as u64,
            Own::FillWords { pattern, .. } | Own::CheckWords { pattern, .. } => u64::from(*pattern),
            Own::Checksum { .. } => 0,
            Own::Quantize(requant) | Own::Dequantize(requant) => u64::from(requant.format),
        };
        let mut state = self.enter(Call::new(kind).range(ptr, size).args(stream.0, word))?;
        if let Own::CheckWords { result, .. } | Own::Checksum { result, .. } = &call
            && !result.0.is_multiple_of(8)
        {
            return Err(invalid(kind.name(), format!("no number of 8 bytes can lie at {result}")));
        }
        if let Own::Quantize(requant) | Own::Dequantize(requant) = &call {
            requant.check(kind.name())?;
        }
        let latency = state.settings.latency;
        let duration = if let Own::Quantize(requant) | Own::Dequantize(requant) = &call {
            // One side may be host memory, as a rule that of the codes.
            let link = state.memory.is_host(requant.src) || state.memory.is_host(requant.dst);
            let codes = requant.quant().map_or(size, |quant| quant.encoded_size(size));
            latency.copy_ns(if link { codes } else { size }, link)
        } else if kind == CallKind::CopyBlocks {
            latency.copy_ns(size, false)
        } else {
            latency.fill_ns(size)
        };
        state.submit(stream, Action::Own(call), duration, kind.name())
    }

    /// Frees memory that is one region, once the device has done all its work.
    pub(super) fn free(&self, kind: CallKind, ptr: DevicePtr, region: RegionKind) -> DriverResult<()> {
        let call = kind.name();
        let mut state = self.state.lock();
        let size = state.memory.region_size(ptr.0, region, call);
        let host = matches!(region, RegionKind::Host | RegionKind::Registered);
        state.begin(Call { host, ..Call::new(kind).range(ptr, *size.as_ref().unwrap_or(&0)) })?;
        size?;
        self.wait(&mut state, |state| state.synchronize_device(call))?;
        // The lock was given up where work waited for the host: another thread may have freed it meanwhile.
        let size = state.memory.region_size(ptr.0, region, call)?;
        if let Some(checker) = &mut state.checker {
            checker.unmapped(ptr, size);
        }
        let ended = state.memory.free_region(ptr.0);
        state.forget(ended);
        Ok(())
    }
}

impl State {
    fn check_capture(&self, id: u64, call: &'static str) -> DriverResult<()> {
        if self.captures.is_invalidated(id) {
            return Err(DriverError::new(DriverErrorKind::Capturing, call, "the capture was invalidated"));
        }
        Ok(())
    }
}
