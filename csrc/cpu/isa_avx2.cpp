// The kernels for AVX2; see simd.h for how one source serves every instruction set.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#pragma GCC target("avx2,fma")
#define OPENGLM_ISA_AVX2

namespace openglm {
namespace avx2 {
#include "simd.h"
#include "gemm.inc"
#include "moe.inc"
#include "attention.inc"
#include "layer.inc"
#include "mtp.inc"
}  // namespace avx2

const Kernels* avx2_kernels() {
    static const Kernels table{"avx2",       avx2::linear,         avx2::linear_f32, avx2::mlp, avx2::moe,
                               avx2::multiply_registers, avx2::rms_norm, avx2::rope_and_write, avx2::attention,  avx2::highest, avx2::decoder_layer, avx2::trunk,
                               avx2::mtp_write_kv, avx2::mtp_draft};
    return &table;
}
}  // namespace openglm
#else
const openglm::Kernels* openglm::avx2_kernels() { return nullptr; }
#endif
