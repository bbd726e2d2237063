//! Numbers as codes: the same ones whether the device makes them or the host, on every way.

use std::sync::Arc;

use stratalloc::driver::fault::{CallKind, Fault, FaultDriver, When};
use stratalloc::driver::kernels::{Element, Quant, dequantize, quantize};
use stratalloc::driver::metered::Metered;
use stratalloc::driver::{Driver, DriverErrorKind};
use stratalloc::tier::codec::{Codec, Quantized};
use stratalloc::tier::transfer::{Engine, EngineConfig};
use stratalloc::tier::{HostConfig, HostTier, Tier, TierError};

use super::kit::{RamTier, builder, device_memory, pattern, read, small};

const SIZES: [u64; 6] = [1, 100, 4096, 16 << 10, (16 << 10) + 2, 100_001];

/// What comes back: each piece on its own, those as they are that would not become smaller.
fn expected(bytes: &[u8], quant: Quant, piece: usize) -> Vec<u8> {
    let mut back = bytes.to_vec();
    for piece in back.chunks_mut(piece) {
        let size = quant.encoded_size(piece.len() as u64);
        if size < piece.len() as u64 {
            let mut codes = vec![0; size as usize];
            quantize(piece, &mut codes, quant).unwrap();
            dequantize(&codes, piece, quant).unwrap();
        }
    }
    back
}

/// Saves and loads objects of all sizes, `skip` bytes behind a boundary. Which calls were made.
fn round_trip(faults: &[CallKind], config: &EngineConfig, host: bool, quant: Quant, skip: u64) -> [u64; 2] {
    let soft = builder().seed(7).build().unwrap();
    let faulty = Arc::new(FaultDriver::new(soft.clone()));
    for &call in faults {
        faulty.inject(Fault { when: When::From(1), kind: DriverErrorKind::NotSupported, only: Some(call) });
    }
    let metered = Arc::new(Metered::new(faulty));
    let driver: Arc<dyn Driver> = metered.clone();
    let tier: Arc<dyn Tier> = if host {
        let config = HostConfig { capacity_bytes: 8 << 20, step_bytes: 2 << 20, background: false };
        Arc::new(HostTier::new(driver.clone(), &config).unwrap())
    } else {
        RamTier::new(8 << 20, 4)
    };
    let codec: Arc<dyn Codec> = Arc::new(Quantized::new(quant));
    let user = driver.create_stream().unwrap();
    let engine = Engine::new(driver.clone(), config.clone()).unwrap();
    for size in SIZES {
        let at = device_memory(&*driver, size + skip).add(skip);
        let bytes = pattern(size, size);
        driver.write(at, &bytes, user).unwrap();
        let place = engine.save(at, size, &tier, Some(&codec), &[user]).unwrap().wait().unwrap().unwrap();
        driver.fill(at, size, 0xee, user).unwrap();
        let load = engine.load(&place, at, &[user]).unwrap();
        engine.order(&load, user).unwrap();
        let found = read(&*driver, at, size, user);
        assert!(found == expected(&bytes, quant, config.piece_bytes as usize), "{quant:?}, {size} bytes");
        load.wait().unwrap();
        if size > 50_000 {
            assert!(place.stored() < size * 4 / 5, "{} of {size}", place.stored());
        }
    }
    drop(engine);
    assert_eq!(soft.report_count(), 0, "{}", soft.reports()[0]);
    [CallKind::Quantize, CallKind::Dequantize].map(|kind| metered.calls().of(kind).count)
}

#[test]
fn by_the_device() {
    for workers in [0, 2] {
        for element in Element::ALL {
            for (bits, host) in [(8, false), (4, true)] {
                let quant = Quant::new(element, bits, 64).unwrap();
                let [out, back] = round_trip(&[], &small(workers), host, quant, 0);
                assert!(out > 8 && out == back, "{out} {back}");
            }
        }
    }
}

#[test]
fn by_the_host_where_the_device_cannot() {
    let quant = Quant::new(Element::Bf16, 8, 128).unwrap();
    for faults in [&[CallKind::Quantize][..], &[CallKind::Dequantize], &[CallKind::Quantize, CallKind::Dequantize]] {
        round_trip(faults, &small(0), false, quant, 0);
    }
    // An address that the kernels do not take.
    assert_eq!(round_trip(&[], &small(0), false, quant, 8), [0, 0]);
}

#[test]
fn sums_of_the_device_are_not_asked_of_lossy_codecs() {
    let quant = Quant::new(Element::F32, 4, 64).unwrap();
    round_trip(&[], &EngineConfig { check_device: true, ..small(0) }, false, quant, 0);
}

#[test]
fn a_launch_that_fails_is_the_transfer_s_failure() {
    for call in [CallKind::Quantize, CallKind::Dequantize] {
        let soft = builder().build().unwrap();
        let driver = Arc::new(FaultDriver::new(soft));
        let engine = Engine::new(driver.clone(), small(0)).unwrap();
        let tier: Arc<dyn Tier> = RamTier::new(8 << 20, 4);
        let codec: Arc<dyn Codec> = Arc::new(Quantized::new(Quant::new(Element::Bf16, 8, 64).unwrap()));
        let at = device_memory(&*driver, 100_000);
        driver.inject(Fault { when: When::Nth(2), kind: DriverErrorKind::Other, only: Some(call) });
        let save = engine.save(at, 100_000, &tier, Some(&codec), &[]).unwrap().wait();
        if call == CallKind::Quantize {
            assert!(matches!(save, Err(TierError::Driver(_))), "{save:?}");
            assert_eq!(tier.used(), 0);
            continue;
        }
        let place = save.unwrap().unwrap();
        let load = engine.load(&place, at, &[]).unwrap().wait();
        assert!(matches!(load, Err(TierError::Driver(_))), "{load:?}");
        // What is stored is as it was.
        engine.load(&place, at, &[]).unwrap().wait().unwrap();
    }
}
