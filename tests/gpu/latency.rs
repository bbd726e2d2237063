//! What the calls of a driver cost.

use std::time::Instant;

use stratalloc::driver::cuda::CudaDriver;
use stratalloc::driver::{CopyOp, Driver, EventStatus, HostPtr, Location};
use stratalloc::units::{ByteSize, DevicePtr};

/// Durations of one call, in nanoseconds.
struct Samples {
    call: &'static str,
    size: u64,
    ns: Vec<u64>,
}

impl Samples {
    fn new(call: &'static str, size: u64) -> Samples {
        Samples { call, size, ns: Vec::new() }
    }

    fn time<T>(&mut self, call: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = call();
        self.ns.push(start.elapsed().as_nanos() as u64);
        result
    }

    fn print(mut self) {
        self.ns.sort_unstable();
        let at = |percent: usize| self.ns[(self.ns.len() - 1) * percent / 100] as f64 / 1000.0;
        let (call, size, count) = (self.call, ByteSize(self.size).to_string(), self.ns.len());
        println!("  {call:<22}{size:>10}{count:>8}{:>11.2}{:>11.2}{:>11.2}{:>11.2}", at(0), at(50), at(90), at(100));
    }
}

/// The driver-latency measurement: every call of the virtual memory path, and those that the hot path avoids.
pub fn driver_latency(driver: &CudaDriver) {
    println!(
        "  {:<22}{:>10}{:>8}{:>11}{:>11}{:>11}{:>11}",
        "call", "size", "count", "min us", "p50 us", "p90 us", "max us"
    );
    for size in [2u64 << 20, 32 << 20, 512 << 20, 2 << 30] {
        if driver.memory_info().unwrap().free > 2 * size {
            virtual_memory_latency(driver, size);
        }
    }
    for size in [2u64 << 20, 512 << 20] {
        let mut samples = ["cuMemAlloc", "cuMemFree"].map(|call| Samples::new(call, size));
        for _ in 0..40 {
            let ptr = samples[0].time(|| driver.alloc_plain(size)).unwrap();
            samples[1].time(|| driver.free_plain(ptr)).unwrap();
        }
        samples.into_iter().for_each(Samples::print);
    }
    while_kernels_run(driver);
    event_latency(driver);
    host_latency(driver);
    many_chunks(driver);
    access_of_many_mappings(driver);
    bandwidth(driver);
}

fn virtual_memory_latency(driver: &CudaDriver, size: u64) {
    let unit = driver.properties().granularity;
    let calls = ["cuMemAddressReserve", "cuMemCreate", "cuMemMap", "cuMemSetAccess", "cuMemUnmap", "cuMemRelease"];
    let mut samples = calls.map(|call| Samples::new(call, size));
    let mut free = Samples::new("cuMemAddressFree", size);
    for _ in 0..160 {
        let ptr = samples[0].time(|| driver.reserve(size, unit)).unwrap();
        let chunk = samples[1].time(|| driver.create(size, Location::Device)).unwrap();
        samples[2].time(|| driver.map(ptr, size, chunk, 0)).unwrap();
        samples[3].time(|| driver.set_access(ptr, size)).unwrap();
        samples[4].time(|| driver.unmap(ptr, size)).unwrap();
        samples[5].time(|| driver.release(chunk)).unwrap();
        free.time(|| driver.unreserve(ptr, size)).unwrap();
    }
    samples.into_iter().chain([free]).for_each(Samples::print);
}

/// The same calls while another stream is busy: whether any of them waits for it.
fn while_kernels_run(driver: &CudaDriver) {
    let size = 1 << 30;
    if driver.memory_info().unwrap().free < 2 * size {
        return;
    }
    let (stream, event) = (driver.create_stream().unwrap(), driver.create_event().unwrap());
    let ptr = driver.alloc_plain(size).unwrap();
    let fill = || driver.fill(ptr, size, 0x5a, stream).unwrap();
    // The first one is slower.
    fill();
    driver.synchronize_stream(stream).unwrap();
    let start = Instant::now();
    fill();
    driver.synchronize_stream(stream).unwrap();
    // A third of a second, whatever the device.
    let count = (0.33 / start.elapsed().as_secs_f64()).clamp(1.0, 1024.0) as u32;
    (0..count).for_each(|_| fill());
    driver.record_event(event, stream).unwrap();
    println!("  the same, while memory is filled on another stream:");
    virtual_memory_latency(driver, 2 << 20);
    let over = driver.query_event(event).unwrap() == EventStatus::Complete;
    println!("  the filling {}", if over { "was over then" } else { "went on: no call waited for it" });
    let mut free = Samples::new("cuMemFree meanwhile", size);
    free.time(|| driver.free_plain(ptr)).unwrap();
    free.print();
    driver.synchronize_stream(stream).unwrap();
    driver.destroy_event(event).unwrap();
    driver.destroy_stream(stream).unwrap();
}

fn event_latency(driver: &CudaDriver) {
    let stream = driver.create_stream().unwrap();
    let event = driver.create_event().unwrap();
    let mut record = Samples::new("cuEventRecord", 0);
    let mut query = Samples::new("cuEventQuery", 0);
    let mut wait = Samples::new("cuStreamWaitEvent", 0);
    let mut info = Samples::new("cuMemGetInfo", 0);
    for _ in 0..1000 {
        record.time(|| driver.record_event(event, stream)).unwrap();
        let _ = query.time(|| driver.query_event(event)).unwrap();
        wait.time(|| driver.wait_event(stream, event)).unwrap();
        info.time(|| driver.memory_info()).unwrap();
    }
    driver.synchronize_stream(stream).unwrap();
    driver.destroy_event(event).unwrap();
    driver.destroy_stream(stream).unwrap();
    [record, query, wait, info].into_iter().for_each(Samples::print);
}

/// Pinned memory, from the driver, and of the program's own.
fn host_latency(driver: &CudaDriver) {
    for (size, rounds) in [(64u64 << 20, 8), (1 << 30, 3)] {
        let mut samples = ["cuMemHostAlloc", "cuMemFreeHost"].map(|call| Samples::new(call, size));
        for _ in 0..rounds {
            let host = samples[0].time(|| driver.alloc_host(size)).unwrap();
            samples[1].time(|| driver.free_host(host)).unwrap();
        }
        samples.into_iter().for_each(Samples::print);
    }
    // One step of a host tier, whose pages are there.
    let (size, page) = (64u64 << 20, 4096);
    let own = vec![1u8; size as usize + page];
    let at = HostPtr((own.as_ptr() as usize).next_multiple_of(page));
    let mut samples = ["cuMemHostRegister", "cuMemHostUnregister"].map(|call| Samples::new(call, size));
    for _ in 0..8 {
        samples[0].time(|| driver.pin_host(at, size)).unwrap();
        samples[1].time(|| driver.unpin_host(at)).unwrap();
    }
    samples.into_iter().for_each(Samples::print);
}

/// Whether chunks get dearer the more there are.
fn many_chunks(driver: &CudaDriver) {
    let size = 2 << 20;
    let mut chunks = Vec::new();
    for call in ["cuMemCreate, from 0 on", "from 250 on", "from 500 on", "from 750 on"] {
        let mut samples = Samples::new(call, size);
        chunks.extend((0..250).map(|_| samples.time(|| driver.create(size, Location::Device)).unwrap()));
        samples.print();
    }
    let mut samples = Samples::new("cuMemRelease of 1000", size);
    for chunk in chunks {
        samples.time(|| driver.release(chunk)).unwrap();
    }
    samples.print();
}

/// One call for a range of many mappings, beside one for each of them: the times are of all calls together.
fn access_of_many_mappings(driver: &CudaDriver) {
    let (unit, count) = (2u64 << 20, 1024);
    let size = unit * count;
    let ptr = driver.reserve(size, unit).unwrap();
    let chunks: Vec<_> = (0..count).map(|_| driver.create(unit, Location::Device).unwrap()).collect();
    let mut map = Samples::new("cuMemMap, 1024 calls", size);
    let mut access = ["SetAccess, 1 call", "SetAccess, 1024 calls"].map(|call| Samples::new(call, size));
    let mut unmap = ["cuMemUnmap, 1 call", "cuMemUnmap, 1024 calls"].map(|call| Samples::new(call, size));
    for round in 0..6 {
        map.time(|| {
            for (at, &chunk) in (ptr.0..).step_by(unit as usize).zip(&chunks) {
                driver.map(DevicePtr(at), unit, chunk, 0).unwrap();
            }
        });
        // All at once, or one by one.
        let way = round % 2;
        let step = [size, unit][way];
        let ranges = || (ptr.0..ptr.0 + size).step_by(step as usize).map(DevicePtr);
        access[way].time(|| ranges().for_each(|at| driver.set_access(at, step).unwrap()));
        unmap[way].time(|| ranges().for_each(|at| driver.unmap(at, step).unwrap()));
    }
    [map].into_iter().chain(access).chain(unmap).for_each(Samples::print);
    chunks.into_iter().for_each(|chunk| driver.release(chunk).unwrap());
    driver.unreserve(ptr, size).unwrap();
}

/// What copies between the device and pinned memory carry.
fn bandwidth(driver: &CudaDriver) {
    let (size, rounds) = (256u64 << 20, 8);
    let device = driver.alloc_plain(size).unwrap();
    let host = driver.alloc_host(size).unwrap();
    let pinned = DevicePtr(host.0 as u64);
    let stream = driver.create_stream().unwrap();
    let ways = [("to the device", device, pinned), ("to the host", pinned, device), ("on the device", device, device)];
    for (way, dst, src) in ways {
        // Of a copy on the device, the halves do not overlap.
        let size = if dst == src { size / 2 } else { size };
        let op = CopyOp { dst: if dst == src { dst.add(size) } else { dst }, src, size };
        driver.copy(&[op], stream).unwrap();
        driver.synchronize_stream(stream).unwrap();
        let start = Instant::now();
        (0..rounds).for_each(|_| driver.copy(&[op], stream).unwrap());
        driver.synchronize_stream(stream).unwrap();
        let rate = (rounds * size) as f64 / start.elapsed().as_secs_f64() / 1e9;
        println!("  copies of {} {way}: {rate:.2} GB/s", ByteSize(size));
    }
    driver.destroy_stream(stream).unwrap();
    driver.free_host(host).unwrap();
    driver.free_plain(device).unwrap();
}
