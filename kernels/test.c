/* The kernels on the CPU against plain loops, for odd sizes at odd addresses and several numbers of threads. Every range is a
 * block of its own, as long as the range, so that AddressSanitizer sees each byte too far. Built and run by tests/kernels.rs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu.c"

static const u64 SIZES[] = {0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 100, 255, 257, 1000, 4096, 4099};
static const u64 THREADS[] = {1, 2, 3, 32, 256};
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define MUST(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "line %d: %s, size %llu, skips %llu %llu, threads %llu\n", __LINE__, #condition, size, skip, \
                    other, threads); \
            exit(1); \
        } \
    } while (0)

/* `size` bytes at an address that is `skip` above a multiple of 16, with nothing behind them. */
static u8 *block_of(u64 size, u64 skip, u32 seed, void **whole) {
    u8 *start = malloc(size + skip + (size + skip == 0));
    if (start == NULL || (u64)start % 16 != 0) exit(2);
    *whole = start;
    for (u64 i = 0; i < size; i++) start[skip + i] = (u8)((i * 2654435761u + seed) >> 13);
    return start + skip;
}

static u64 sum_of(const u8 *bytes, u64 size) {
    u64 sum = 0;
    for (u64 place = 0; place * 8 < size; place++) {
        u64 word = 0;
        for (u64 i = 0; i < 8 && place * 8 + i < size; i++) word += (u64)bytes[place * 8 + i] << (8 * i);
        sum += mixed(word, place + 1);
    }
    return sum + mixed(size, 0);
}

/* Numbers of 32 bits against plain loops, any number of threads against one, and every byte too far. */
static void check_codes(u64 size, u64 threads, u32 code_bits, u32 element) {
    const u64 skip = 0, other = code_bits;
    const u32 format = element | code_bits << 8 | 5u << 16;
    struct layout l = layout_of(size, format);
    u64 length = l.rest_at + l.rest;
    void *free_a, *free_b, *free_c, *free_d;
    u8 *src = block_of(size, 0, 5, &free_a), *one = block_of(length, 0, 0, &free_b);
    u8 *many = block_of(length, 0, 9, &free_c), *back = block_of(size, 0, 3, &free_d);
    stratalloc_kernel_quantize(1, (u64)src, (u64)one, size, format);
    stratalloc_kernel_quantize(threads, (u64)src, (u64)many, size, format);
    MUST(memcmp(one, many, length) == 0);
    stratalloc_kernel_dequantize(threads, (u64)one, (u64)back, size, format);
    MUST(memcmp(src + size - l.rest, back + size - l.rest, l.rest) == 0);
    for (u64 i = 0; i < l.count && element == ELEMENT_F32; i++) {
        float went, came, scale;
        memcpy(&went, src + i * 4, 4);
        memcpy(&came, back + i * 4, 4);
        memcpy(&scale, one + HEADER_BYTES + i / 32 * 4, 4);
        if (went - went != 0) MUST(bits_of(scale) >> 31 == 1 && came - came != 0);
        else MUST((went < came ? came - went : went - came) <= (scale < 0 ? -scale : scale) * 0.50002f);
    }
    free(free_a);
    free(free_b);
    free(free_c);
    free(free_d);
}

static void check_all(u64 size, u64 skip, u64 other, u64 threads) {
    void *free_a, *free_b;
    u8 *a = block_of(size, skip, 1, &free_a), *b = block_of(size, other, 77, &free_b);
    u64 sum = 0;
    stratalloc_kernel_checksum(threads, (u64)a, size, &sum);
    MUST(sum == sum_of(a, size));

    struct copy_op ops[3] = {{(u64)b, (u64)a, size}, {(u64)b, (u64)a, 0}, {0, 0, 0}};
    stratalloc_kernel_copy_blocks(threads, ops, 3);
    MUST(memcmp(a, b, size) == 0);

    const u32 pattern = 0x8badf00du;
    stratalloc_kernel_fill_words(threads, (u64)a, size, pattern);
    for (u64 i = 0; i < size; i++) MUST(a[i] == (u8)(pattern >> (8 * (i % 4))));
    struct finding found = {0, ~0ull};
    stratalloc_kernel_check_words(threads, (u64)a, size, pattern, &found);
    MUST(found.count == 0 && found.first == ~0ull);
    for (u64 step = 1; step <= size; step = step * 3 + 1) {
        u64 at = size - step, count = 0;
        a[at] ^= 0x40;
        for (u64 i = 0; i < size; i++) count += a[i] != (u8)(pattern >> (8 * (i % 4)));
        struct finding damage = {0, ~0ull};
        stratalloc_kernel_check_words(threads, (u64)a, size, pattern, &damage);
        MUST(damage.count == count && damage.first == (at << 8 | a[at]));
    }
    free(free_a);
    free(free_b);
}

int main(void) {
    u64 cases = 0;
    for (u64 s = 0; s < COUNT(SIZES); s++)
        for (u64 skip = 0; skip < 16; skip++)
            for (u64 other = 0; other < 16; other += 1 + (SIZES[s] > 300) * 4)
                for (u64 t = 0; t < COUNT(THREADS); t++, cases++) check_all(SIZES[s], skip, other, THREADS[t]);
    for (u64 s = 0; s < COUNT(SIZES); s++)
        for (u64 t = 0; t < COUNT(THREADS); t++)
            for (u32 kind = 0; kind < 6; kind++, cases++) check_codes(SIZES[s], THREADS[t], kind < 3 ? 8 : 4, kind % 3);
    printf("%llu cases\n", cases);
    return 0;
}
