//! Numbers as codes of 8 or 4 bits: what `kernels/quantize.h` does, on the host, to the same bits.

use std::fmt;

/// A kind of number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Element {
    /// `bfloat16`.
    Bf16,
    /// IEEE 754 binary16.
    F16,
    /// IEEE 754 binary32.
    F32,
}

impl Element {
    /// All of them, in the order of their numbers.
    pub const ALL: [Element; 3] = [Element::Bf16, Element::F16, Element::F32];

    /// Bytes of one.
    pub const fn width(self) -> usize {
        match self {
            Element::Bf16 | Element::F16 => 2,
            Element::F32 => 4,
        }
    }

    /// Binary digits of the significand, with the one that is not stored.
    const fn digits(self) -> i32 {
        match self {
            Element::Bf16 => 8,
            Element::F16 => 11,
            Element::F32 => 24,
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Element::Bf16 => "bf16",
            Element::F16 => "f16",
            Element::F32 => "f32",
        })
    }
}

/// How numbers become codes: which numbers, how many bits a code has, and how many share a scale.
///
/// A finite number `v` comes back as one that differs by at most half the scale of its group, and half a unit in the last place of `v` more, for
/// what comes back is a number of the same kind. The scale is the largest magnitude in the group over 127 (8 bits) or 7 (4 bits), and no
/// less than 2^-126. Infinities and what is no number come back as they were, but for the sign and the digits of what is no number; in their groups
/// the scale is the largest finite magnitude over 126 or 6. Zeros lose their sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quant {
    element: Element,
    bits: u8,
    group_log2: u8,
}

/// The first bytes of what is made: a name and a version.
const MAGIC: [u8; 4] = *b"stq\x01";
const HEADER: usize = 16;
const GROUP_MAX: usize = 256;
const GROUP_MIN: usize = 32;
const INFINITY: u32 = 0x7f80_0000;
const NAN: u32 = 0x7fc0_0000;
const ROUNDER: f32 = 12_582_912.0;

impl Quant {
    /// Codes of 8 or 4 bits, for groups of 32, 64, 128 or 256 numbers; `None` for anything else.
    pub fn new(element: Element, bits: u32, group: usize) -> Option<Quant> {
        let fits = matches!(bits, 4 | 8) && group.is_power_of_two() && (GROUP_MIN..=GROUP_MAX).contains(&group);
        fits.then(|| Quant { element, bits: bits as u8, group_log2: group.ilog2() as u8 })
    }

    /// The number by which kernels know it.
    pub fn format(self) -> u32 {
        u32::from_le_bytes([self.element as u8, self.bits, self.group_log2, 0])
    }

    /// What [`Quant::format`] gave; `None` for any other number.
    pub fn from_format(format: u32) -> Option<Quant> {
        let [element, bits, group_log2, 0] = format.to_le_bytes() else { return None };
        let element = *Element::ALL.get(usize::from(element))?;
        Quant::new(element, bits.into(), 1usize.checked_shl(group_log2.into())?)
    }

    /// Which numbers.
    pub fn element(self) -> Element {
        self.element
    }

    /// Bits of a code.
    pub fn bits(self) -> u32 {
        self.bits.into()
    }

    /// Numbers that share a scale.
    pub fn group(self) -> usize {
        1 << self.group_log2
    }

    /// The most by which a finite number changes, as a part of the largest finite magnitude in its group. Beside it there is an absolute one, of
    /// half the least number of the kind, or 2^-127.
    pub fn error_bound(self) -> f64 {
        0.5 / f64::from(self.top() - 1) + 0.5_f64.powi(self.element.digits())
    }

    /// Bytes that `size` bytes become.
    pub fn encoded_size(self, size: u64) -> u64 {
        let layout = self.layout(size);
        layout.rest_at + layout.rest
    }

    fn top(self) -> i32 {
        (1 << (self.bits - 1)) - 1
    }

    fn layout(self, size: u64) -> Layout {
        let width = self.element.width() as u64;
        let count = size / width;
        let groups = count.div_ceil(self.group() as u64);
        let codes_at = (HEADER as u64 + groups * 4).next_multiple_of(16);
        let rest_at = codes_at + if self.bits == 8 { count } else { count.div_ceil(2) };
        Layout { count, codes_at, rest_at, rest: size % width }
    }
}

struct Layout {
    count: u64,
    codes_at: u64,
    rest_at: u64,
    rest: u64,
}

/// Why codes are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotQuantized(&'static str);

/// What the kernel `quantize` makes of `src`, at the beginning of `dst`. Returns its length; `None` where `dst` has no room for it.
pub fn quantize(src: &[u8], dst: &mut [u8], quant: Quant) -> Option<usize> {
    let layout = quant.layout(src.len() as u64);
    let length = (layout.rest_at + layout.rest) as usize;
    let dst = dst.get_mut(..length)?;
    let (head, body) = dst.split_at_mut(HEADER);
    head[..4].copy_from_slice(&MAGIC);
    head[4..8].copy_from_slice(&quant.format().to_le_bytes());
    head[8..].copy_from_slice(&(src.len() as u64).to_le_bytes());
    let (scales, codes) = body.split_at_mut(layout.codes_at as usize - HEADER);
    let (numbers, rest) = src.split_at(src.len() - layout.rest as usize);
    let codes_len = codes.len() - rest.len();
    codes[codes_len..].copy_from_slice(rest);
    let groups = numbers.chunks(quant.group() * quant.element.width());
    let used = groups.len() * 4;
    scales[used..].fill(0);
    let places =
        scales.chunks_exact_mut(4).zip(codes[..codes_len].chunks_mut(quant.group() * quant.bits() as usize / 8));
    for (group, (scale, codes)) in groups.zip(places) {
        let mut wide = [0; GROUP_MAX];
        let wide = widen_all(quant.element, group, &mut wide);
        scale.copy_from_slice(&encode_group(wide, codes, quant).to_le_bytes());
    }
    Some(length)
}

/// What the kernel `dequantize` makes of `src`, into all of `dst`.
///
/// # Errors
/// [`NotQuantized`] where `src` is not what [`quantize`] makes of as many bytes as `dst` has.
pub fn dequantize(src: &[u8], dst: &mut [u8], quant: Quant) -> Result<(), NotQuantized> {
    let layout = quant.layout(dst.len() as u64);
    let Some((head, body)) = src.split_at_checked(HEADER) else { return Err(NotQuantized("it is too short")) };
    if head[..4] != MAGIC {
        return Err(NotQuantized("it does not begin as codes do"));
    }
    if head[4..8] != quant.format().to_le_bytes() {
        return Err(NotQuantized("it has other elements, codes or groups"));
    }
    if head[8..] != (dst.len() as u64).to_le_bytes() || src.len() as u64 != layout.rest_at + layout.rest {
        return Err(NotQuantized("it has another size"));
    }
    let (scales, codes) = body.split_at(layout.codes_at as usize - HEADER);
    let (codes, rest) = codes.split_at(codes.len() - layout.rest as usize);
    let (numbers, tail) = dst.split_at_mut(layout.count as usize * quant.element.width());
    tail.copy_from_slice(rest);
    let groups = numbers.chunks_mut(quant.group() * quant.element.width());
    let places = scales.chunks_exact(4).zip(codes.chunks(quant.group() * quant.bits() as usize / 8));
    for (group, (scale, codes)) in groups.zip(places) {
        let scale = u32::from_le_bytes([scale[0], scale[1], scale[2], scale[3]]);
        if scale & INFINITY == INFINITY {
            return Err(NotQuantized("a scale is no finite number"));
        }
        decode_group(codes, group, scale, quant);
    }
    Ok(())
}

/// The numbers of a group as bits of 32-bit floats.
fn widen_all<'a>(element: Element, group: &[u8], wide: &'a mut [u32; GROUP_MAX]) -> &'a [u32] {
    fn each<const WIDTH: usize>(group: &[u8], wide: &mut [u32], widen: impl Fn([u8; WIDTH]) -> u32) {
        wide.iter_mut().zip(group.as_chunks().0).for_each(|(wide, raw)| *wide = widen(*raw));
    }
    match element {
        Element::Bf16 => each(group, wide, |raw| u32::from(u16::from_le_bytes(raw)) << 16),
        Element::F16 => each(group, wide, |raw| widen_half(u16::from_le_bytes(raw))),
        Element::F32 => each(group, wide, u32::from_le_bytes),
    }
    &wide[..group.len() / element.width()]
}

/// Without a branch, so that several are made at once; so for the others.
fn widen_half(raw: u16) -> u32 {
    let raw = u32::from(raw);
    let (sign, size) = ((raw & 0x8000) << 16, raw & 0x7fff);
    let normal = (size << 13) + (112 << 23);
    // Times 2^-24, which is exact.
    let small = ((size & 0x3ff) as f32 * 5.960_464_5e-8).to_bits();
    sign | if size >= 0x7c00 {
        INFINITY | size << 13
    } else if size >= 0x400 {
        normal
    } else {
        small
    }
}

/// Writes a group's codes; returns its scale, with the sign bit set where there are infinities or what is no number.
fn encode_group(wide: &[u32], codes: &mut [u8], quant: Quant) -> u32 {
    let top = quant.top();
    let (mut largest, special) = largest_of(wide);
    if special {
        let sizes = wide.iter().map(|bits| bits & !(1 << 31)).filter(|size| *size < INFINITY);
        largest = f32::from_bits(sizes.max().unwrap_or(0));
    }
    let limit = top - i32::from(special);
    let mut scale = largest / limit as f32;
    if largest > 0.0 {
        scale = scale.max(f32::MIN_POSITIVE);
    }
    let mut bytes = [0u8; GROUP_MAX];
    // No quotient is above the limit by more than its rounding, so that none is rounded beyond it. The last byte of the sum is the code.
    let code_of = |bits: u32| (f32::from_bits(bits) / scale + ROUNDER).to_bits() as u8;
    if special {
        for (byte, &bits) in bytes.iter_mut().zip(wide) {
            let size = bits & !(1 << 31);
            *byte = match () {
                () if size > INFINITY => (-top - 1) as u8,
                () if bits == INFINITY => top as u8,
                () if size == INFINITY => -top as u8,
                () if largest == 0.0 => 0,
                () => code_of(bits),
            };
        }
    } else if largest > 0.0 {
        bytes.iter_mut().zip(wide).for_each(|(byte, &bits)| *byte = code_of(bits));
    }
    if quant.bits == 8 {
        codes.copy_from_slice(&bytes[..wide.len()]);
    } else {
        let pairs = bytes.as_chunks::<2>().0;
        codes.iter_mut().zip(pairs).for_each(|(code, [low, high])| *code = low & 15 | high << 4);
    }
    scale.to_bits() | u32::from(special) << 31
}

/// The largest magnitude, and whether there are infinities or what is no number; where there are, the first means nothing. Several
/// numbers are looked at at once.
fn largest_of(wide: &[u32]) -> (f32, bool) {
    let mut lanes = [0.0_f32; 8];
    let mut special = [0; 8];
    let mut look = |numbers: &[u32]| {
        for ((lane, special), bits) in lanes.iter_mut().zip(&mut special).zip(numbers) {
            let size = f32::from_bits(bits & !(1 << 31));
            *lane = if size > *lane { size } else { *lane };
            *special |= u32::from(bits & INFINITY == INFINITY);
        }
    };
    let (eights, rest) = wide.as_chunks::<8>();
    eights.iter().for_each(|numbers| look(numbers));
    look(rest);
    (lanes.into_iter().fold(0.0, f32::max), special.into_iter().any(|found| found != 0))
}

fn decode_group(codes: &[u8], group: &mut [u8], scale: u32, quant: Quant) {
    let mut signed = [0i8; GROUP_MAX];
    if quant.bits == 8 {
        signed.iter_mut().zip(codes).for_each(|(signed, code)| *signed = *code as i8);
    } else {
        let low = |code: u8| (code << 4) as i8 >> 4;
        for ([first, second], &code) in signed.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
            (*first, *second) = (low(code), code as i8 >> 4);
        }
    }
    let (special, scale) = (scale >> 31 == 1, f32::from_bits(scale & !(1 << 31)));
    let top = quant.top() as i8;
    let product = |code: i8| (f32::from(code) * scale).to_bits();
    if !special {
        return match quant.element {
            Element::Bf16 => put_all(&signed, group, |code| (narrow_bf16(product(code)) as u16).to_le_bytes()),
            Element::F16 => put_all(&signed, group, |code| (narrow_half(product(code)) as u16).to_le_bytes()),
            Element::F32 => put_all(&signed, group, |code| narrow_f32(product(code)).to_le_bytes()),
        };
    }
    let special = |code: i8| match code {
        _ if code == -top - 1 => Some(NAN),
        _ if code == top => Some(INFINITY),
        _ if code == -top => Some(INFINITY | 1 << 31),
        _ => None,
    };
    let half = |bits: u32| bits >> 16 & 0x8000 | if bits == NAN { 0x7e00 } else { 0x7c00 };
    match quant.element {
        Element::Bf16 => put_all(&signed, group, |code| {
            (special(code).map_or_else(|| narrow_bf16(product(code)), |bits| bits >> 16) as u16).to_le_bytes()
        }),
        Element::F16 => put_all(&signed, group, |code| {
            (special(code).map_or_else(|| narrow_half(product(code)), half) as u16).to_le_bytes()
        }),
        Element::F32 => {
            put_all(&signed, group, |code| special(code).unwrap_or_else(|| narrow_f32(product(code))).to_le_bytes())
        }
    }
}

fn put_all<const WIDTH: usize>(codes: &[i8], group: &mut [u8], number: impl Fn(i8) -> [u8; WIDTH]) {
    group.as_chunks_mut().0.iter_mut().zip(codes).for_each(|(place, &code)| *place = number(code));
}

/// The nearest to a number, ties to even; the largest finite one where it is too large. So for the others.
fn narrow_bf16(bits: u32) -> u32 {
    let (sign, size) = (bits >> 31 << 15, (bits & !(1 << 31)).min(0x7f7f_0000));
    sign | (size + 0x7fff + (size >> 16 & 1)) >> 16
}

fn narrow_f32(bits: u32) -> u32 {
    bits & 1 << 31 | (bits & !(1 << 31)).min(INFINITY - 1)
}

fn narrow_half(bits: u32) -> u32 {
    // 65504 is the largest.
    let (sign, size) = (bits >> 31 << 15, (bits & !(1 << 31)).min(0x477f_e000));
    let normal = (size + 0xfff + (size >> 13 & 1)).wrapping_sub(112 << 23) >> 13;
    // Below 2^-14, the least normal number, the sum with a half is rounded to a multiple of the least of all.
    let small = (f32::from_bits(size) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    sign | if size >= 0x3880_0000 { normal } else { small }
}
