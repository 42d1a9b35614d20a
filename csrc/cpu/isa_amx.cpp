// The kernels for AVX-512 with bf16 products and VNNI, and AMX tiles; see simd.h for how one source serves every instruction set.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni,avx512vbmi")
#define OPENGLM_ISA_AVX512
#define OPENGLM_ISA_BF16
#define OPENGLM_ISA_AMX

namespace openglm {
namespace amx {
#include "simd.h"
#include "tiles.h"
#include "gemm.inc"
#include "moe.inc"
#include "attention.inc"
#include "layer.inc"
#include "mtp.inc"
}  // namespace amx

const Kernels* amx_kernels() {
    static const Kernels table{"amx",       amx::linear,         amx::linear_f32, amx::mlp, amx::moe,
                               amx::multiply_registers, amx::rms_norm, amx::rope_and_write, amx::attention,  amx::highest, amx::decoder_layer, amx::trunk,
                               amx::mtp_write_kv, amx::mtp_draft};
    return &table;
}
}  // namespace openglm
#else
const openglm::Kernels* openglm::amx_kernels() { return nullptr; }
#endif
