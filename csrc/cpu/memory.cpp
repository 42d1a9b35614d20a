// Aligned memory of the kernels. Large blocks lie on huge pages where the system has them: reading a weight through 4 KiB pages costs a
// fifth to a third of the bandwidth.
//
// Packed weights share slabs, because a block of its own would end in a huge page that is half empty: an expert of GLM-4.5-Air in
// int4 is 1.5 huge pages long. Pages of a slab that no weight has touched take no memory.
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <mutex>

#include "kernels.h"

namespace openglm {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kPage = 4096;
constexpr size_t kSlab = size_t{256} << 20;
constexpr size_t kLine = 64;

size_t rounded_up(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

// Zeroed memory straight from the system, at the start of a huge page; null if there is none.
void* map(size_t bytes) {
    const size_t size = rounded_up(bytes, kPage), reserved = size + kHugePage;
    void* raw = mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw == MAP_FAILED) return nullptr;
    auto* start = static_cast<char*>(raw);
    auto* aligned = reinterpret_cast<char*>(rounded_up(reinterpret_cast<uintptr_t>(start), kHugePage));
    if (aligned > start) munmap(start, aligned - start);
    if (start + reserved > aligned + size) munmap(aligned + size, start + reserved - (aligned + size));
#ifdef MADV_HUGEPAGE
    madvise(aligned, size, MADV_HUGEPAGE);
#endif
    return aligned;
}

void unmap(void* p, size_t bytes) { munmap(p, rounded_up(bytes, kPage)); }

}  // namespace

struct Slab {
    char* memory;
    size_t used;
    int blocks;  // that are alive
};

namespace {
std::mutex slabs_lock;
Slab* open_slab = nullptr;  // the one that new blocks come from
}  // namespace

WeightMemory allocate_weight(size_t bytes) {
    const size_t size = rounded_up(bytes, kLine);
    if (size > kSlab / 4) return {map(size), nullptr, size};
    const std::lock_guard<std::mutex> lock(slabs_lock);
    if (!open_slab || open_slab->used + size > kSlab) {
        auto* memory = static_cast<char*>(map(kSlab));
        if (!memory) return {nullptr, nullptr, 0};
        if (open_slab && open_slab->blocks == 0) {
            unmap(open_slab->memory, kSlab);
            delete open_slab;
        }
        open_slab = new Slab{memory, 0, 0};
    }
    void* p = open_slab->memory + open_slab->used;
    open_slab->used += size;
    open_slab->blocks++;
    return {p, open_slab, size};
}

void free_weight(const WeightMemory& block) {
    if (!block.data) return;
    if (!block.slab) return unmap(block.data, block.bytes);
    const std::lock_guard<std::mutex> lock(slabs_lock);
    if (--block.slab->blocks > 0) return;
    if (block.slab == open_slab && block.slab->used <= kHugePage) {  // begin it anew: cheaper than a fresh one
        std::memset(block.slab->memory, 0, block.slab->used);
        block.slab->used = 0;
        return;
    }
    if (block.slab == open_slab) open_slab = nullptr;
    unmap(block.slab->memory, kSlab);
    delete block.slab;
}

void* allocate_aligned(size_t bytes) {
    if (bytes >= kHugePage) return map(bytes);
    const size_t size = rounded_up(bytes ? bytes : 1, kLine);
    void* p = std::aligned_alloc(kLine, size);
    if (p) std::memset(p, 0, size);
    return p;
}

void free_aligned(void* p, size_t bytes) {
    if (!p) return;
    if (bytes >= kHugePage) unmap(p, bytes);
    else std::free(p);
}

}  // namespace openglm
