// The one thread pool of the kernels, and their aligned memory. Owns no maths.
//
// Workers spin for a short while after a job, because the next one of a step usually follows within microseconds, and then sleep.
#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "kernels.h"

namespace openglm {
namespace {

constexpr int kSpins = 4000;

class Pool {
public:
    void resize(int count) {
        stop();
        quit_.store(false);
        const uint64_t present = epoch_.load();
        for (int i = 1; i < count; i++) workers_.emplace_back([this, present] { work(present); });
    }
    int size() const { return static_cast<int>(workers_.size()) + 1; }

    void run(int count, void (*fn)(void*, int), void* context) {
        if (workers_.empty() || count < 2) {
            for (int i = 0; i < count; i++) fn(context, i);
            return;
        }
        fn_ = fn;
        context_ = context;
        count_ = count;
        next_.store(0, std::memory_order_relaxed);
        busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
        epoch_.fetch_add(1, std::memory_order_release);
        epoch_.notify_all();
        take();
        while (busy_.load(std::memory_order_acquire)) pause();
    }

    ~Pool() { stop(); }

private:
    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
    void take() {
        for (int i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) fn_(context_, i);
    }
    void work(uint64_t seen) {
        for (;;) {
            for (int spin = 0; spin < kSpins && epoch_.load(std::memory_order_acquire) == seen; spin++) pause();
            epoch_.wait(seen, std::memory_order_acquire);
            seen = epoch_.load(std::memory_order_acquire);
            if (quit_.load()) return;
            take();
            busy_.fetch_sub(1, std::memory_order_release);
        }
    }
    void stop() {
        if (workers_.empty()) return;
        quit_.store(true);
        epoch_.fetch_add(1, std::memory_order_release);
        epoch_.notify_all();
        for (auto& worker : workers_) worker.join();
        workers_.clear();
    }

    std::vector<std::thread> workers_;
    std::atomic<uint64_t> epoch_{0};
    std::atomic<int> next_{0}, busy_{0};
    std::atomic<bool> quit_{false};
    void (*fn_)(void*, int) = nullptr;
    void* context_ = nullptr;
    int count_ = 0;
};

Pool& pool() {
    static auto* instance = new Pool;  // never destroyed: at exit its threads may still be needed or already be gone
    return *instance;
}

}  // namespace

void run_parallel(int count, void (*fn)(void*, int), void* context) { pool().run(count, fn, context); }
void set_num_threads(int count) { pool().resize(count < 1 ? 1 : count); }
int num_threads() { return pool().size(); }

constexpr size_t kHugePage = size_t{2} << 20;

void* allocate_aligned(size_t bytes) {
    const size_t alignment = bytes >= kHugePage ? kHugePage : 64;
    const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    void* p = std::aligned_alloc(alignment, rounded ? rounded : alignment);
    if (!p) return nullptr;
#ifdef MADV_HUGEPAGE
    if (bytes >= kHugePage) madvise(p, rounded, MADV_HUGEPAGE);
#endif
    std::memset(p, 0, rounded);
    return p;
}

void free_aligned(void* p, size_t) { std::free(p); }

}  // namespace openglm
