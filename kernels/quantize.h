/* Floating-point numbers as codes of 8 or 4 bits, and back. So many numbers share a scale: a group. What is made is a header of 16 bytes,
 * the groups' scales, the codes from the next multiple of 16 on, and last the bytes that were no whole number.
 *
 * A code is the number over its group's scale, rounded to the nearest, ties to even; the scale is the group's largest magnitude over the
 * largest code. A group with an infinity or no number in it has the sign bit of its scale set, and its outermost codes stand for those. No
 * sum follows a product anywhere, so there is nothing that one compiler might fuse and another not: every device gives the same bits. */
#ifndef STRATALLOC_QUANTIZE_H
#define STRATALLOC_QUANTIZE_H
#include "portable.h"

/* What `format` is made of, the lowest byte first: the element, the bits of a code, and the binary logarithm of the group's size. */
enum element { ELEMENT_BF16, ELEMENT_F16, ELEMENT_F32 };

#define HEADER_BYTES 16
/* "stq" and the version. */
#define QUANTIZED_MAGIC 0x01717473ull
#define INFINITY_BITS 0x7f800000u
#define NAN_BITS 0x7fc00000u
/* The least normal number: a smaller scale would lose its own digits. */
#define SCALE_MIN_BITS 0x00800000u
/* Numbers that are added to this one are rounded to an integer, which its lowest bits then are. */
#define ROUNDER 12582912.0f
/* Numbers that are read and written together. */
#define UNIT 8

struct layout {
    u32 element, code_bits, group, width;
    int top; /* the largest code */
    u64 count, groups, codes_at, rest_at, rest;
};

DEVICE struct layout layout_of(u64 size, u32 format) {
    struct layout l;
    l.element = format & 255;
    l.code_bits = format >> 8 & 255;
    l.group = 1u << (format >> 16 & 31);
    l.width = l.element == ELEMENT_F32 ? 4 : 2;
    l.top = (1 << (l.code_bits - 1)) - 1;
    l.count = size / l.width;
    l.groups = (l.count + l.group - 1) / l.group;
    l.codes_at = (HEADER_BYTES + l.groups * 4 + 15) & ~15ull;
    l.rest_at = l.codes_at + (l.count * l.code_bits + 7) / 8;
    l.rest = size % l.width;
    return l;
}

/* The bits of a 32-bit float of the same value. */
DEVICE u32 widened(u32 raw, u32 element) {
    if (element == ELEMENT_F32) return raw;
    if (element == ELEMENT_BF16) return raw << 16;
    u32 sign = (raw & 0x8000) << 16, exponent = raw >> 10 & 31, digits = raw & 0x3ff;
    if (exponent == 31) return sign | INFINITY_BITS | digits << 13;
    if (exponent == 0) return sign | bits_of((float)digits * 5.9604644775390625e-8f); /* 2^-24: exact */
    return sign | (exponent + 112) << 23 | digits << 13;
}

/* The nearest element to a finite number, ties to even; the largest finite one where it is too large. */
DEVICE u32 narrowed(u32 bits, u32 element) {
    u32 sign = bits & 0x80000000u, size = bits ^ sign;
    if (element == ELEMENT_F32) return sign | (size < INFINITY_BITS ? size : INFINITY_BITS - 1);
    sign >>= 16;
    if (element == ELEMENT_BF16) {
        if (size >= 0x7f7f8000u) return sign | 0x7f7f;
        return sign | (size + 0x7fff + (size >> 16 & 1)) >> 16;
    }
    if (size >= 0x477ff000u) return sign | 0x7bff;
    if (size >= 0x38800000u) return sign | (size + 0xfff + (size >> 13 & 1) - (112u << 23)) >> 13;
    if (size <= 0x33000000u) return sign; /* at most half of the least one */
    u32 shift = 126 - (size >> 23), digits = (size & 0x7fffff) | 0x800000;
    u32 whole = digits >> shift, part = digits & ((1u << shift) - 1), half = 1u << (shift - 1);
    return sign | (whole + (part > half || (part == half && (whole & 1))));
}

/* Infinity or not a number, as an element. */
DEVICE u32 narrowed_special(u32 bits, u32 element) {
    if (element == ELEMENT_F32) return bits;
    if (element == ELEMENT_BF16) return bits >> 16;
    return (bits >> 16 & 0x8000) | ((bits & 0x7fffff) ? 0x7e00 : 0x7c00);
}

/* Half of 16 bytes of numbers, as bits of 32-bit floats. Every loop here has as many rounds as the compiler is told, so that the numbers are
 * in registers. */
DEVICE void widened_word(u64 word, u32 element, u32 *out) {
    if (element == ELEMENT_F32)
        for (u32 i = 0; i < 2; i++) out[i] = (u32)(word >> (i * 32));
    else
        for (u32 i = 0; i < 4; i++) out[i] = widened((u32)(word >> (i * 16)) & 0xffff, element);
}

/* As many as UNIT numbers from the `at`-th on, as bits of 32-bit floats, and zeros behind them. */
DEVICE void load_numbers(u64 ptr, u32 element, u64 at, u64 many, u32 *out) {
    if (many < UNIT) {
        for (u32 i = 0; i < UNIT; i++) {
            u32 raw = i >= many ? 0 : element == ELEMENT_F32 ? AT(const u32, ptr)[at + i] : AT(const u16, ptr)[at + i];
            out[i] = widened(raw, element);
        }
    } else if (element == ELEMENT_F32) {
        struct wide first = AT(const struct wide, ptr)[at / 4], second = AT(const struct wide, ptr)[at / 4 + 1];
        widened_word(first.low, element, out);
        widened_word(first.high, element, out + 2);
        widened_word(second.low, element, out + 4);
        widened_word(second.high, element, out + 6);
    } else {
        struct wide both = AT(const struct wide, ptr)[at / 8];
        widened_word(both.low, element, out);
        widened_word(both.high, element, out + 4);
    }
}

DEVICE u64 narrow_word(const u32 *numbers, u32 element) {
    if (element == ELEMENT_F32) return (u64)numbers[1] << 32 | numbers[0];
    return (u64)numbers[3] << 48 | (u64)numbers[2] << 32 | (u64)numbers[1] << 16 | numbers[0];
}

DEVICE void store_numbers(u64 ptr, u32 element, u64 at, u64 many, const u32 *numbers) {
    if (many < UNIT) {
        for (u32 i = 0; i < UNIT; i++) {
            if (i >= many) continue;
            if (element == ELEMENT_F32) AT(u32, ptr)[at + i] = numbers[i];
            else AT(u16, ptr)[at + i] = (u16)numbers[i];
        }
    } else if (element == ELEMENT_F32) {
        struct wide first = {narrow_word(numbers, element), narrow_word(numbers + 2, element)};
        struct wide second = {narrow_word(numbers + 4, element), narrow_word(numbers + 6, element)};
        AT(struct wide, ptr)[at / 4] = first;
        AT(struct wide, ptr)[at / 4 + 1] = second;
    } else {
        struct wide both = {narrow_word(numbers, element), narrow_word(numbers + 4, element)};
        AT(struct wide, ptr)[at / 8] = both;
    }
}

DEVICE int code_of(u32 bits, float scale, int special, int top) {
    u32 size = bits & 0x7fffffffu;
    if (size >= INFINITY_BITS) return size > INFINITY_BITS ? -top - 1 : bits == size ? top : -top;
    if (scale == 0.0f) return 0;
    float rounded = float_of(bits) / scale + ROUNDER;
    int code = (int)(bits_of(rounded) - bits_of(ROUNDER));
    int limit = top - special;
    return code > limit ? limit : code < -limit ? -limit : code;
}

DEVICE void quantize_group(struct layout l, u64 src, u64 dst, u64 group) {
    u64 begin = group * l.group, end = begin + l.group < l.count ? begin + l.group : l.count;
    u32 numbers[UNIT], largest = 0;
    int special = 0;
    for (u64 at = begin; at < end; at += UNIT) {
        load_numbers(src, l.element, at, end - at, numbers);
        for (u32 i = 0; i < UNIT; i++) {
            u32 size = numbers[i] & 0x7fffffffu;
            if (size >= INFINITY_BITS) special = 1;
            else if (size > largest) largest = size;
        }
    }
    float scale = float_of(largest) / (float)(l.top - special);
    if (largest != 0 && bits_of(scale) < SCALE_MIN_BITS) scale = float_of(SCALE_MIN_BITS);
    AT(u32, dst + HEADER_BYTES)[group] = bits_of(scale) | (u32)special << 31;
    for (u64 at = begin; at < end; at += UNIT) {
        u64 codes = 0, to = dst + l.codes_at + at * l.code_bits / 8;
        load_numbers(src, l.element, at, end - at, numbers);
        for (u32 i = 0; i < UNIT; i++) {
            u64 code = (u64)code_of(numbers[i], scale, special, l.top) & ((1u << l.code_bits) - 1);
            codes |= code << (i * l.code_bits);
        }
        if (end - at < UNIT)
            for (u32 i = 0; i < ((end - at) * l.code_bits + 7) / 8; i++) AT(u8, to)[i] = (u8)(codes >> (i * 8));
        else if (l.code_bits == 8) *AT(u64, to) = codes;
        else *AT(u32, to) = (u32)codes;
    }
}

/* `src` and `dst` are multiples of 16; `dst` has room for the header, the scales, the codes and the rest. */
DEVICE void quantize(struct thread t, u64 src, u64 dst, u64 size, u32 format) {
    struct layout l = layout_of(size, format);
    for (u64 group = t.index; group < l.groups; group += t.count) quantize_group(l, src, dst, group);
    if (t.index > 0) return;
    AT(u64, dst)[0] = QUANTIZED_MAGIC | (u64)format << 32;
    AT(u64, dst)[1] = size;
    for (u64 at = HEADER_BYTES + l.groups * 4; at < l.codes_at; at++) AT(u8, dst)[at] = 0;
    for (u64 i = 0; i < l.rest; i++) AT(u8, dst + l.rest_at)[i] = AT(const u8, src)[size - l.rest + i];
}

DEVICE u32 number_of(int code, float scale, int special, struct layout l) {
    if (special && code == -l.top - 1) return narrowed_special(NAN_BITS, l.element);
    if (special && code == l.top) return narrowed_special(INFINITY_BITS, l.element);
    if (special && code == -l.top) return narrowed_special(INFINITY_BITS | 0x80000000u, l.element);
    return narrowed(bits_of((float)code * scale), l.element);
}

DEVICE void dequantize_group(struct layout l, u64 src, u64 dst, u64 group) {
    u64 begin = group * l.group, end = begin + l.group < l.count ? begin + l.group : l.count;
    u32 scale_bits = AT(const u32, src + HEADER_BYTES)[group], half = 1u << (l.code_bits - 1);
    float scale = float_of(scale_bits & 0x7fffffffu);
    int special = (int)(scale_bits >> 31);
    for (u64 at = begin; at < end; at += UNIT) {
        u64 codes = 0, from = src + l.codes_at + at * l.code_bits / 8;
        if (end - at < UNIT)
            for (u32 i = 0; i < ((end - at) * l.code_bits + 7) / 8; i++) codes |= (u64)AT(const u8, from)[i] << (i * 8);
        else if (l.code_bits == 8) codes = *AT(const u64, from);
        else codes = *AT(const u32, from);
        u32 numbers[UNIT];
        for (u32 i = 0; i < UNIT; i++) {
            u32 code = (u32)(codes >> (i * l.code_bits)) & ((1u << l.code_bits) - 1);
            numbers[i] = number_of((int)(code ^ half) - (int)half, scale, special, l);
        }
        store_numbers(dst, l.element, at, end - at, numbers);
    }
}

/* The way back: `size` is what comes out. The header is for the host to look at. */
DEVICE void dequantize(struct thread t, u64 src, u64 dst, u64 size, u32 format) {
    struct layout l = layout_of(size, format);
    for (u64 group = t.index; group < l.groups; group += t.count) dequantize_group(l, src, dst, group);
    if (t.index > 0) return;
    for (u64 i = 0; i < l.rest; i++) AT(u8, dst)[size - l.rest + i] = AT(const u8, src + l.rest_at)[i];
}

#endif
