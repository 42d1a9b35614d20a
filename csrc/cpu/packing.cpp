// Weights on their way into panel order: rounded to the format, scattered row by row. Owns every format's rounding; the kernels own how
// it is read back (gemm.inc).
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <new>
#include <vector>

#include "kernels.h"

namespace openglm {
namespace {

struct Line {  // one row on its way, and the panel column it becomes
    const float* values;
    int k;
    size_t row, panel, column;
};

float widen_bf16(uint16_t x) { return std::bit_cast<float>(static_cast<uint32_t>(x) << 16); }

// bf16 numbers not above and not below a finite x. Cutting bits off moves towards zero.
uint16_t bf16_below(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    return static_cast<uint16_t>((bits >> 16) + ((bits & 0xFFFF) && x < 0.0f ? 1 : 0));
}
uint16_t bf16_above(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    return static_cast<uint16_t>((bits >> 16) + ((bits & 0xFFFF) && x > 0.0f ? 1 : 0));
}

void read_row(const void* source, DType dtype, size_t begin, int k, float* values) {
    if (dtype == DType::f32) {
        std::memcpy(values, static_cast<const float*>(source) + begin, static_cast<size_t>(k) * 4);
        return;
    }
    const auto* narrow = static_cast<const uint16_t*>(source) + begin;
    for (int i = 0; i < k; i++) values[i] = widen_bf16(narrow[i]);
}

// The largest magnitude, NaN if one is not finite. Eight at a time, so that it costs less than reading.
float largest(const float* values, int k) {
    float most[8] = {}, check[8] = {};
    for (int i = 0; i + 8 <= k; i += 8)
        for (int j = 0; j < 8; j++) {
            most[j] = std::max(most[j], std::fabs(values[i + j]));
            check[j] += values[i + j] * 0.0f;
        }
    for (int i = k / 8 * 8; i < k; i++) {
        most[0] = std::max(most[0], std::fabs(values[i]));
        check[0] += values[i] * 0.0f;
    }
    float top = 0.0f, sum = 0.0f;
    for (int j = 0; j < 8; j++) {
        top = std::max(top, most[j]);
        sum += check[j];
    }
    return sum == 0.0f ? top : NAN;
}

size_t pair_place(const Linear& w, const Line& line, int i) {
    return ((line.panel * (w.k_padded / 2) + static_cast<size_t>(i / 2)) * kPanel + line.column) * 2 + i % 2;
}

bool store_bf16_row(Linear& w, const Line& line) {
    uint32_t lost = 0;
    for (int i = 0; i < line.k; i++) {
        const uint32_t bits = std::bit_cast<uint32_t>(line.values[i]);
        lost |= bits & 0xFFFF;
        static_cast<uint16_t*>(w.data)[pair_place(w, line, i)] = static_cast<uint16_t>(bits >> 16);
    }
    return lost == 0;
}

// values / scale to the nearest whole number, even ones from the middle, within -127 and 127; returns their sum. Adding and taking away
// 1.5 * 2^23 rounds as `nearbyintf` does, and many at a time.
int32_t round_row(const float* values, int k, float scale, int8_t* codes) {
    constexpr float kShift = 12582912.0f;
    int32_t sum = 0;
    for (int i = 0; i < k; i++) {
        const float ratio = values[i] / scale;
        const float within = ratio >= -127.0f ? std::min(127.0f, ratio) : -127.0f;  // NaN too becomes a number
        const int32_t code = static_cast<int32_t>((within + kShift) - kShift);
        codes[i] = static_cast<int8_t>(code);
        sum += code;
    }
    return sum;
}

// Bytes of a row into its panel column, as many at a time as stand together there: a pair, or four for the instructions of w8a8.
template <class Word>
void scatter(Linear& w, const Line& line, const int8_t* row) {
    const size_t words = w.k_padded / sizeof(Word);
    auto* to = static_cast<Word*>(w.data) + line.panel * words * kPanel + line.column;
    for (size_t i = 0; i < words; i++) std::memcpy(to + i * kPanel, row + i * sizeof(Word), sizeof(Word));
}

// Codes of a row with one scale for all of it.
void store_scaled_row(Linear& w, const Line& line, const float* given) {
    const float most = w.dtype == DType::fp8 ? 448.0f : 127.0f;
    float scale = given ? *given : largest(line.values, line.k) / most;  // NaN shows in the output, as it would without quantization
    if (scale == 0.0f) scale = 1.0f;
    w.scale[line.row] = scale;
    static thread_local std::vector<int8_t> row;
    row.assign(w.k_padded, 0);
    if (w.dtype == DType::fp8) {
        for (int i = 0; i < line.k; i++) row[i] = static_cast<int8_t>(to_fp8(line.values[i] / scale));
        scatter<uint16_t>(w, line, row.data());
        return;
    }
    const int32_t sum = round_row(line.values, line.k, scale, row.data());
    if (w.dtype == DType::int8) scatter<uint16_t>(w, line, row.data());
    else scatter<uint32_t>(w, line, row.data());
    if (w.code_sums) w.code_sums[line.row] = sum;
}

// Four bits each, sixteen even steps from the smallest to the largest of a group: no element is off by more than half a step.
void store_int4_row(Linear& w, const Line& line) {
    auto* words = static_cast<uint32_t*>(w.data) + line.panel * (w.k_padded / 8) * kPanel + line.column;
    for (int g = 0; g < w.num_groups; g++) {
        const int first = g * kGroup, last = std::min(line.k, first + kGroup);
        const float* values = line.values;
        const bool finite = largest(values + first, last - first) >= 0.0f;
        const auto [low_at, high_at] = std::minmax_element(values + first, values + last);
        const uint16_t low_bits = finite ? bf16_below(*low_at) : 0x7FC0;
        const float low = widen_bf16(low_bits);
        const uint16_t step_bits = finite ? bf16_above((*high_at - low) / 15.0f) : 0x7FC0;
        const float step = widen_bf16(step_bits);
        uint16_t* parameters = w.groups + (line.panel * w.num_groups + g) * 2 * kPanel + line.column;
        parameters[0] = step_bits;
        parameters[kPanel] = low_bits;
        for (int block = first; block < last; block += 8) {
            uint32_t word = 0;  // even elements in the low half, odd ones in the high half
            for (int i = block; i < std::min(last, block + 8); i++) {
                const float code = step > 0.0f ? std::nearbyintf((values[i] - low) / step) : 0.0f;  // all alike, or not finite
                word |= static_cast<uint32_t>(std::min(15.0f, std::max(0.0f, code))) << (i % 2 * 16 + i % 8 / 2 * 4);
            }
            words[static_cast<size_t>(block / 8) * kPanel] = word;
        }
    }
}

bool store_row(Linear& w, const Line& line, const float* given) {
    switch (w.dtype) {
        case DType::f32:
            for (int i = 0; i < line.k; i++)
                static_cast<float*>(w.data)[(line.panel * w.k_padded + i) * kPanel + line.column] = line.values[i];
            return true;
        case DType::bf16: return store_bf16_row(w, line);
        case DType::int4: store_int4_row(w, line); return true;
        default: store_scaled_row(w, line, given); return true;
    }
}

template <class T>
bool allocate(WeightMemory& block, T*& p, size_t count) {
    block = allocate_weight(count * sizeof(T));
    p = static_cast<T*>(block.data);
    return p != nullptr;
}

}  // namespace

Linear* new_linear(int n, int k, DType dtype) {
    auto* w = new (std::nothrow) Linear{};
    if (!w) return nullptr;
    const int unit = dtype == DType::int4 || dtype == DType::w8a8 ? 8 : 2;
    w->dtype = dtype;
    w->n = n;
    w->k = k;
    w->panels = (n + kPanel - 1) / kPanel;
    w->k_padded = (k + unit - 1) / unit * unit;
    const size_t columns = static_cast<size_t>(w->panels) * kPanel, elements = columns * w->k_padded;
    auto* data = static_cast<char*>(nullptr);
    bool whole = allocate(w->blocks[0], data, dtype == DType::f32 ? elements * 4 : dtype == DType::bf16 ? elements * 2 : dtype == DType::int4 ? elements / 2 : elements);
    w->data = data;
    if (dtype == DType::fp8 || dtype == DType::int8 || dtype == DType::w8a8) whole = whole && allocate(w->blocks[1], w->scale, columns);
    if (dtype == DType::w8a8) whole = whole && allocate(w->blocks[2], w->code_sums, columns);
    if (dtype == DType::int4) {
        w->num_groups = (w->k_padded + kGroup - 1) / kGroup;
        whole = whole && allocate(w->blocks[1], w->groups, columns * w->num_groups * 2);
    }
    if (whole) return w;
    free_linear(w);
    return nullptr;
}

bool set_bias(Linear& w, const float* bias) {
    free_weight(w.blocks[3]);
    if (!allocate(w.blocks[3], w.bias, static_cast<size_t>(w.panels) * kPanel)) return false;
    std::memcpy(w.bias, bias, static_cast<size_t>(w.n) * 4);
    return true;
}

void free_linear(Linear* w) {
    for (const WeightMemory& block : w->blocks) free_weight(block);
    delete w;
}

size_t linear_bytes(const Linear& w) {
    size_t bytes = 0;
    for (const WeightMemory& block : w.blocks) bytes += block.bytes;
    return bytes;
}

bool pack_rows(Linear& w, int first, int count, const void* source, DType dtype, const float* scales, bool shared) {
    constexpr int kRows = 16;
    std::vector<char> lost((count + kRows - 1) / kRows);
    parallel_for(static_cast<int>(lost.size()), shared, [&](int task) {
        static thread_local std::vector<float> values;
        values.resize(w.k);
        for (int i = task * kRows; i < std::min(count, (task + 1) * kRows); i++) {
            const size_t row = static_cast<size_t>(first) + i, begin = static_cast<size_t>(i) * w.k;
            const Line line{values.data(), w.k, row, row / kPanel, row % kPanel};
            if (dtype == DType::fp8) {  // codes that stay as they are
                const auto* codes = static_cast<const uint8_t*>(source) + begin;
                w.scale[row] = scales[i];
                for (int j = 0; j < w.k; j++) static_cast<uint8_t*>(w.data)[pair_place(w, line, j)] = codes[j];
                continue;
            }
            read_row(source, dtype, begin, w.k, values.data());
            if (!store_row(w, line, scales ? scales + i : nullptr)) lost[task] = 1;
        }
    });
    return std::find(lost.begin(), lost.end(), 1) == lost.end();
}

bool pack_again(Linear& w, const Linear& source) {
    if (w.n != source.n || w.k != source.k || (source.dtype != DType::f32 && source.dtype != DType::bf16)) return false;
    std::vector<char> lost(source.panels);
    parallel_for(source.panels, [&](int panel) {
        static thread_local std::vector<float> values;
        values.resize(source.k);
        for (int column = 0; column < std::min(kPanel, source.n - panel * kPanel); column++) {
            const Line line{values.data(), source.k, static_cast<size_t>(panel) * kPanel + column, static_cast<size_t>(panel), static_cast<size_t>(column)};
            for (int i = 0; i < source.k; i++)
                values[i] = source.dtype == DType::bf16
                                ? widen_bf16(static_cast<const uint16_t*>(source.data)[pair_place(source, line, i)])
                                : static_cast<const float*>(source.data)[(line.panel * source.k_padded + i) * kPanel + line.column];
            if (!store_row(w, line, nullptr)) lost[panel] = 1;
        }
    });
    return std::find(lost.begin(), lost.end(), 1) == lost.end();
}

}  // namespace openglm
