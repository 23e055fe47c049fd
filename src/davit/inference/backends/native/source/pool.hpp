// Threads that share out numbered items of work, one job at a time.
#pragma once

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace davit {

inline void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// One caller at a time, who works along. Threads start on the first job that wants them, stay for the next, look out for
// it a short while, then sleep, until the process ends. In a forked child none of them exist; they start anew there.
class Pool {
 public:
  Pool() = default;
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // Call work(item, thread) for items 0 to count - 1, each once, on up to `threads` threads; thread 0 is the caller.
  template <class Work>
  void run(int count, int threads, const Work& work) {
    threads = threads < count ? threads : count;
    if (threads > 1) threads = 1 + hire(threads - 1);
    if (threads <= 1) {
      for (int item = 0; item < count; ++item) work(item, 0);
      return;
    }
    crew_->call = [](const void* context, int item, int thread) { (*static_cast<const Work*>(context))(item, thread); };
    crew_->context = &work;
    crew_->count = count;
    crew_->helpers = threads - 1;
    crew_->next.store(0, std::memory_order_relaxed);
    crew_->inside.fetch_sub(CLOSED, std::memory_order_release);
    crew_->announce();
    crew_->take(0);
    // Whoever has not come in by now need not: a thread that waits for a core holds nobody up.
    crew_->inside.fetch_add(CLOSED, std::memory_order_relaxed);
    for (int tries = 0; crew_->inside.load(std::memory_order_acquire) != CLOSED; ++tries) {
      if (tries < PATIENCE) pause_briefly();
      else std::this_thread::yield();  // someone else may need this core to finish
    }
  }

 private:
  static constexpr int PATIENCE = 4000;      // pauses, about a tenth of a millisecond
  static constexpr int CLOSED = -(1 << 20);  // added to how many are inside while nobody may enter

  struct Crew {
    void (*call)(const void*, int, int) = nullptr;
    const void* context = nullptr;
    int count = 0;
    int helpers = 0;
    std::atomic<int> next{0};
    std::atomic<int> inside{CLOSED};  // helpers at work on the job
    std::atomic<unsigned> job{0};
    std::atomic<int> asleep{0};
    std::mutex mutex;
    std::condition_variable wake;
    std::vector<std::thread> threads;

    void take(int thread) {
      for (int item; (item = next.fetch_add(1, std::memory_order_relaxed)) < count;) call(context, item, thread);
    }
    void announce() {
      job.fetch_add(1);
      if (asleep.load() > 0) {
        { std::lock_guard<std::mutex> lock(mutex); }
        wake.notify_all();
      }
    }
    // Until there is another job than the one seen last; returns its number.
    unsigned wait(unsigned seen) {
      for (int tries = 0; tries < PATIENCE; ++tries) {
        const unsigned now = job.load(std::memory_order_acquire);
        if (now != seen) return now;
        pause_briefly();
      }
      std::unique_lock<std::mutex> lock(mutex);
      asleep.fetch_add(1);
      wake.wait(lock, [&] { return job.load() != seen; });
      asleep.fetch_sub(1);
      return job.load();
    }
    void live(int thread, unsigned seen) {
      for (;;) {
        seen = wait(seen);
        if (inside.fetch_add(1, std::memory_order_acquire) >= 0 && thread <= helpers) take(thread);
        inside.fetch_sub(1, std::memory_order_release);
      }
    }
  };

  // Make sure of that many threads beside the caller; returns how many there are, fewer where the system refuses.
  int hire(int wanted) {
    if (!crew_ || owner_ != getpid()) {
      // The parent's threads did not come along; their records cannot be joined and are left where they are.
      crew_ = new Crew;
      owner_ = getpid();
    }
    try {
      while (static_cast<int>(crew_->threads.size()) < wanted) {
        const int thread = static_cast<int>(crew_->threads.size()) + 1;
        crew_->threads.emplace_back([crew = crew_, thread, seen = crew_->job.load()] { crew->live(thread, seen); });
      }
    } catch (const std::system_error&) {
    }
    const int there = static_cast<int>(crew_->threads.size());
    return there < wanted ? there : wanted;
  }

  Crew* crew_ = nullptr;
  pid_t owner_ = 0;
};

}  // namespace davit
