#include "kernels.hpp"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace slimrun {
namespace {

bool processor_has(const Kernels& kernels) {
    const std::string name = kernels.name;
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    if (name == "avx512") return __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512bw");
    if (name == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi");
#endif
    return name == "scalar" || name == "neon";  // every 64-bit Arm processor has it
}

const Kernels* const kAll[] = {  // fastest first
#if defined(__x86_64__) && defined(__GNUC__)
    &kAvx512Kernels, &kAvx2Kernels,
#endif
#if defined(__aarch64__)
    &kNeonKernels,
#endif
    &kScalarKernels};

}  // namespace

const Kernels& kernels() {
    const char* const wanted = std::getenv("SLIMRUN_SIMD");
    std::string known;
    for (const Kernels* one : kAll) {
        if (!processor_has(*one)) continue;
        if (!wanted || !*wanted || std::string(wanted) == one->name) return *one;
        known += (known.empty() ? "" : ", ") + std::string(one->name);
    }
    throw std::invalid_argument("SLIMRUN_SIMD=" + std::string(wanted) + ": this processor has " + known);
}

}  // namespace slimrun
