/* What the programs have in common: a check that says where it failed. */
#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                  \
    do {                                                                                  \
        if (!(condition)) {                                                               \
            fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
            exit(1);                                                                      \
        }                                                                                 \
    } while (0)

/* A call must return this code. */
#define EXPECT(code, call)                                                                      \
    do {                                                                                        \
        int got = (call);                                                                       \
        if (got != (code)) {                                                                    \
            fprintf(stderr, "%s:%d: %s gave %d, not %d\n", __FILE__, __LINE__, #call, got, (code)); \
            exit(1);                                                                            \
        }                                                                                       \
    } while (0)

#define OK(call) EXPECT(0, call)
