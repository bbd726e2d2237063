//! Every value of 16 bits through every codec, hostile input, and what weights become.

use proptest::prelude::*;

use super::*;

/// Deterministic bytes.
struct Noise(u64);

impl Noise {
    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    #[cfg(feature = "codecs")]
    /// Normally distributed, with a standard deviation of 0.02, as weights are.
    fn weight(&mut self) -> f32 {
        let mut uniform = || (self.word() >> 11) as f64 / (1u64 << 53) as f64;
        let (a, b) = (1.0 - uniform(), uniform());
        ((-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos() * 0.02) as f32
    }
}

/// The value of an element, exactly.
fn value(element: Element, raw: u32) -> f64 {
    match element {
        Element::F32 => f64::from(f32::from_bits(raw)),
        Element::Bf16 => f64::from(f32::from_bits(raw << 16)),
        Element::F16 => {
            let (sign, exponent, digits) = (raw >> 15, raw >> 10 & 31, f64::from(raw & 0x3ff));
            let size = match exponent {
                31 if digits == 0.0 => f64::INFINITY,
                31 => f64::NAN,
                0 => digits * 2f64.powi(-24),
                _ => (1.0 + digits / 1024.0) * 2f64.powi(exponent as i32 - 15),
            };
            if sign == 1 { -size } else { size }
        }
    }
}

/// Half the distance to the next larger number of the kind.
fn half_ulp(element: Element, of: f64) -> f64 {
    let (digits, least) = match element {
        Element::Bf16 => (8, -133),
        Element::F16 => (11, -24),
        Element::F32 => (24, -149),
    };
    let exponent = if of == 0.0 { least } else { (of.abs().log2().floor() as i32 - digits + 1).max(least) };
    2f64.powi(exponent - 1)
}

fn bytes_of(element: Element, raws: &[u32]) -> Vec<u8> {
    raws.iter().flat_map(|raw| raw.to_le_bytes()[..element.width()].to_vec()).collect()
}

fn raws_of(element: Element, bytes: &[u8]) -> Vec<u32> {
    let number = |chunk: &[u8]| chunk.iter().rev().fold(0, |number, &byte| number << 8 | u32::from(byte));
    bytes.chunks_exact(element.width()).map(number).collect()
}

fn through(codec: &dyn Codec, src: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut encoded = vec![0xaa; codec.bound(src.len())];
    let length = codec.encode(src, &mut encoded).unwrap();
    encoded.truncate(length);
    let mut back = vec![0x55; src.len()];
    codec.decode(&encoded, &mut back).unwrap();
    (encoded, back)
}

/// Each value against the bound that `Quant` documents, from the scale that was stored.
fn within_bounds(quant: Quant, raws: &[u32]) {
    let (element, codec) = (quant.element(), Quantized::new(quant));
    let (encoded, back) = through(&codec, &bytes_of(element, raws));
    let scale_of = |at: usize| {
        let place = 16 + at / quant.group() * 4;
        f64::from(f32::from_bits(u32::from_le_bytes(encoded[place..place + 4].try_into().unwrap())))
    };
    let back = raws_of(element, &back);
    for (at, (&went, &came)) in raws.iter().zip(&back).enumerate() {
        let (went, came, scale) = (value(element, went), value(element, came), scale_of(at));
        if went.is_nan() {
            assert!(came.is_nan() && scale.is_sign_negative(), "{quant:?} {at}");
        } else if went.is_infinite() {
            assert!(came == went && scale.is_sign_negative(), "{quant:?} {at}");
        } else {
            // The two roundings of 32-bit floats on the way are some millionths of a scale.
            let bound = scale.abs() * 0.500_02 + half_ulp(element, came);
            assert!((went - came).abs() <= bound, "{quant:?} {at}: {went} became {came}, scale {scale}");
            let group = &raws[at / quant.group() * quant.group()..];
            let sizes = group[..quant.group().min(group.len())].iter().map(|&raw| value(element, raw).abs());
            let largest = sizes.filter(|size| size.is_finite()).fold(0.0, f64::max);
            let stated = quant.error_bound() * largest * 1.000_05 + half_ulp(element, 0.0).max(2f64.powi(-127));
            assert!((went - came).abs() <= stated, "{quant:?} {at}: {went} became {came}, largest {largest}");
        }
    }
}

fn all_quants() -> impl Iterator<Item = Quant> {
    let kinds = Element::ALL.into_iter().flat_map(|element| [(element, 8), (element, 4)]);
    kinds.flat_map(|(element, bits)| [32, 64, 128, 256].map(|group| Quant::new(element, bits, group).unwrap()))
}

#[test]
fn every_value_of_16_bits_is_within_its_bound() {
    let mut noise = Noise(1);
    let in_order: Vec<u32> = (0..=0xffff).collect();
    let mut shuffled = in_order.clone();
    (1..shuffled.len()).rev().for_each(|at| shuffled.swap(at, (noise.word() % (at as u64 + 1)) as usize));
    // By magnitude, so that groups have one exponent, and finite ones nothing else.
    let mut by_size = in_order.clone();
    by_size.sort_by_key(|raw| raw & 0x7fff);
    for quant in all_quants().filter(|quant| quant.element() != Element::F32) {
        for raws in [&in_order, &shuffled, &by_size] {
            within_bounds(quant, raws);
        }
    }
}

#[test]
fn values_of_32_bits_are_within_their_bound() {
    let mut noise = Noise(2);
    let any: Vec<u32> = (0..40_000).map(|_| noise.word() as u32).collect();
    let mut close: Vec<u32> = any.iter().map(|raw| raw & 0x83ff_ffff | 0x3c00_0000).collect();
    close[777] = f32::INFINITY.to_bits();
    let tiny: Vec<u32> = any.iter().map(|raw| raw & 0x80ff_ffff).collect();
    let least: Vec<u32> = (0..1000).map(|at| at % 3).collect();
    let most = vec![f32::MAX.to_bits(), f32::MIN.to_bits(), 0, 1 << 31, f32::NAN.to_bits(), 0xff80_0000, 0x7f80_0001];
    for quant in all_quants().filter(|quant| quant.element() == Element::F32) {
        for raws in [&any, &close, &tiny, &least, &most, &vec![0x8000_0000; 300], &vec![0x7f80_0000; 300], &vec![]] {
            within_bounds(quant, raws);
        }
    }
}

#[test]
fn what_comes_back_is_the_nearest_to_code_times_scale() {
    let mut noise = Noise(3);
    for quant in [Element::Bf16, Element::F16].map(|element| Quant::new(element, 8, 32).unwrap()) {
        let element = quant.element();
        for _ in 0..20_000 {
            let word = noise.word();
            // Scales from far below the least number to above the largest.
            let scale = f32::from_bits((word as u32 & 0x7fff_ffff) % 0x7f00_0000);
            let code = (word >> 40) as i8;
            let mut encoded = vec![0; quant.encoded_size(2) as usize];
            quantize_one(quant, &mut encoded, scale, code);
            let mut back = [0; 2];
            crate::driver::kernels::dequantize(&encoded, &mut back, quant).unwrap();
            let raw = u32::from(u16::from_le_bytes(back));
            let most = value(element, if element == Element::F16 { 0x7bff } else { 0x7f7f });
            let exact = f64::from(f32::from(code) * scale).clamp(-most, most);
            let error = (value(element, raw) - exact).abs();
            let size = raw & 0x7fff;
            for other in [size.wrapping_sub(1), size + 1] {
                let near = value(element, other & 0x7fff);
                if other <= 0x7fff && near.is_finite() {
                    let distance = (near - exact.abs()).abs();
                    let tie_is_even = distance > error || raw & 1 == 0;
                    assert!(distance >= error && tie_is_even, "{element} {code} * {scale:e} became {raw:#x}");
                }
            }
        }
    }
}

/// Codes of one number.
fn quantize_one(quant: Quant, encoded: &mut [u8], scale: f32, code: i8) {
    crate::driver::kernels::quantize(&[0; 2], encoded, quant).unwrap();
    encoded[16..20].copy_from_slice(&scale.to_le_bytes());
    encoded[32] = code as u8;
}

#[test]
fn names_find_their_codecs() {
    assert!(by_name("none").unwrap().is_none());
    for name in NAMES.into_iter().skip(1) {
        match by_name(name) {
            Ok(codec) => assert_eq!(codec.unwrap().name(), name),
            Err(error) => assert_eq!(error, CodecError::NotBuilt { name: name.to_owned() }),
        }
        let is_lossless = name.starts_with("lossless");
        assert_eq!(by_name(name).is_err(), is_lossless && !cfg!(feature = "codecs"));
    }
    for name in ["int8-bf16-g64", "int4-f32-g128", "int4-f16-g32", "int8-f16-g256"] {
        assert_eq!(by_name(name).unwrap().unwrap().name(), name);
    }
    assert_eq!(by_name("int8-bf16-g128").unwrap().unwrap().name(), "int8-bf16");
    for name in [
        "",
        "int8",
        "int8-",
        "int8-f64",
        "int3-f32",
        "int8-bf16-g48",
        "int8-bf16-g+64",
        "int8-bf16-g64-",
        "lossless",
        "None",
    ] {
        let error = by_name(name).err().unwrap();
        assert_eq!(error, CodecError::Unknown { name: name.to_owned(), known: NAMES.join(", ") });
        assert!(error.to_string().contains("int4-bf16"), "{error}");
    }
}

#[test]
fn formats_come_back() {
    for quant in all_quants() {
        assert_eq!(Quant::from_format(quant.format()), Some(quant));
    }
    for format in [0, 0x0007_0803, 0x0007_0701, 0x0003_0800, 0x0009_0800, 0x00ff_0800, 0x0107_0800, u32::MAX] {
        assert_eq!(Quant::from_format(format), None, "{format:#x}");
    }
    // Sizes near the end of numbers do not overflow.
    assert!(all_quants().all(|quant| quant.encoded_size(u64::MAX) < u64::MAX));
}

#[test]
fn codes_that_are_none_are_refused() {
    let codec = Quantized::new(Quant::new(Element::Bf16, 8, 64).unwrap());
    let (encoded, _) = through(&codec, &[7; 1001]);
    let mut back = [0; 1001];
    let refused = |encoded: &[u8], size: usize| {
        let mut back = vec![0; size];
        let error = codec.decode(encoded, &mut back).err();
        matches!(error, Some(TierError::Codec(CodecError::Malformed { .. })))
    };
    assert!((0..encoded.len()).all(|length| refused(&encoded[..length], 1001)));
    assert!(refused(&[&encoded[..], &[0]].concat(), 1001));
    assert!(refused(&encoded, 1000) && refused(&encoded, 1002) && refused(&encoded, 0));
    for at in 0..16 {
        let mut damaged = encoded.clone();
        damaged[at] ^= 1;
        assert!(refused(&damaged, 1001), "byte {at}");
    }
    let mut infinite = encoded.clone();
    infinite[16..20].copy_from_slice(&f32::INFINITY.to_le_bytes());
    assert!(refused(&infinite, 1001));
    codec.decode(&encoded, &mut back).unwrap();
    let no_room = codec.encode(&back, &mut [0; 100]).err();
    assert!(matches!(no_room, Some(TierError::Codec(CodecError::NoRoom { room: 100, .. }))), "{no_room:?}");
}

proptest! {
    #[test]
    fn hostile_codes_never_panic(bytes: Vec<u8>, size in 0..600_usize, name in prop::sample::select(&NAMES[1..])) {
        let Ok(Some(codec)) = by_name(name) else { return Ok(()) };
        let mut out = vec![0; size];
        prop_assert!(codec.decode(&bytes, &mut out).is_err());
        // With damage behind a header that is right.
        let mut encoded = vec![0; codec.bound(size)];
        let length = codec.encode(&out, &mut encoded).unwrap();
        encoded.truncate(length);
        encoded.iter_mut().skip(16).zip(&bytes).for_each(|(place, byte)| *place ^= byte);
        let _ = codec.decode(&encoded, &mut out);
    }
}

#[cfg(feature = "codecs")]
mod lossless {
    use super::*;

    fn weights(element: Element, count: usize) -> Vec<u8> {
        let mut noise = Noise(4);
        let raw = |weight: f32| match element {
            Element::F32 => weight.to_bits(),
            Element::Bf16 => weight.to_bits() >> 16,
            // Truncated: good enough for a distribution.
            Element::F16 => {
                let size = weight.abs();
                let exponent = (size.to_bits() >> 23) as i32 - 127;
                let digits = if exponent < -14 { size * 2f32.powi(24) } else { size * 2f32.powi(10 - exponent) } as u32;
                let biased = if exponent < -14 { 0 } else { (exponent + 15) as u32 };
                weight.to_bits() >> 31 << 15 | biased << 10 | digits & 0x3ff
            }
        };
        let raws: Vec<u32> = (0..count).map(|_| raw(noise.weight())).collect();
        bytes_of(element, &raws)
    }

    #[test]
    fn weights_become_fewer_bytes() {
        for (name, element, least) in [
            ("lossless16", Element::Bf16, 1.45),
            ("lossless16", Element::F16, 1.12),
            ("lossless32", Element::F32, 1.17),
        ] {
            let codec = by_name(name).unwrap().unwrap();
            let weights = weights(element, 1 << 20);
            let (encoded, back) = through(&*codec, &weights);
            assert_eq!(back, weights);
            let ratio = weights.len() as f64 / encoded.len() as f64;
            assert!(ratio > least, "{name} of {element}: {ratio}");
        }
    }

    #[test]
    fn noise_grows_by_the_head_only() {
        let mut noise = Noise(5);
        let bytes: Vec<u8> = (0..1 << 17).flat_map(|_| noise.word().to_le_bytes()).collect();
        for (name, head) in [("lossless8", 24), ("lossless16", 32), ("lossless32", 48)] {
            let codec = by_name(name).unwrap().unwrap();
            let (encoded, back) = through(&*codec, &bytes);
            assert_eq!(back, bytes);
            assert_eq!(encoded.len(), bytes.len() + head);
        }
    }

    #[test]
    fn what_is_cut_off_or_of_another_width_is_refused() {
        let codec = by_name("lossless16").unwrap().unwrap();
        let bytes = weights(Element::Bf16, 3000);
        let (encoded, mut back) = through(&*codec, &bytes);
        assert!((0..encoded.len()).all(|length| codec.decode(&encoded[..length], &mut back).is_err()));
        assert!(codec.decode(&[&encoded[..], &[0]].concat(), &mut back).is_err());
        assert!(codec.decode(&encoded, &mut back[1..]).is_err());
        assert!(by_name("lossless32").unwrap().unwrap().decode(&encoded, &mut back).is_err());
        let short = codec.encode(&bytes, &mut vec![0; codec.bound(bytes.len()) - 1]).err();
        assert!(matches!(short, Some(TierError::Codec(CodecError::NoRoom { .. }))), "{short:?}");
    }

    proptest! {
        #[test]
        fn what_went_comes_back(bytes: Vec<u8>, repeats in 1..2000_usize, name in prop::sample::select(&NAMES[1..4])) {
            let codec = by_name(name).unwrap().unwrap();
            let bytes: Vec<u8> = bytes.iter().copied().cycle().take(bytes.len() * repeats % 200_001).collect();
            let (encoded, back) = through(&*codec, &bytes);
            prop_assert!(encoded.len() <= codec.bound(bytes.len()));
            prop_assert_eq!(back, bytes);
        }
    }

    #[test]
    fn threads_share_a_codec() {
        let codec = by_name("lossless16").unwrap().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let codec = &codec;
                scope.spawn(move || {
                    let mut bytes = weights(Element::Bf16, 20_000);
                    bytes.rotate_left(thread * 1000);
                    assert_eq!(through(&**codec, &bytes).1, bytes);
                });
            }
        });
    }
}
