// One function, compiled for several instruction sets; the loader takes the best that the processor has.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define SLIMRUN_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define SLIMRUN_CLONES
#endif
