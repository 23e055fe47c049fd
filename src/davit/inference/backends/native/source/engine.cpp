// The C interface of the engine: make a model, ask how much memory a forward pass takes, run it.
#include <pthread.h>

#include <cstring>
#include <exception>
#include <mutex>
#include <new>

#include "forward.hpp"

namespace {

using namespace davit;

// A processor has one set of cores: all engines of a process share these threads and take turns. Never destroyed, for
// threads may still run while a process ends.
struct Turns {
  std::mutex mutex;
  Pool pool;
};

Turns& turns() {
  static Turns* shared = [] {
    // A fork waits for the forward pass under way, so that the child finds the lock free and the memory whole.
    pthread_atfork([] { turns().mutex.lock(); }, [] { turns().mutex.unlock(); }, [] { turns().mutex.unlock(); });
    return new Turns;
  }();
  return *shared;
}

struct Engine {
  Model model;
  Buffer memory;  // of forward passes; grows to what the largest takes
};

enum Result { OK = 0, OUT_OF_MEMORY = 1, INVALID = 2 };

// Sizes must fit the integers that count tokens.
bool countable(const Model& model, int batch, int height, int width) {
  if (batch < 1 || height < 1 || width < 1) return false;
  const double tokens = static_cast<double>(batch) * divide_up(height, 2) * divide_up(width, 2);
  return tokens < 1e9 && static_cast<double>(model.window) * model.window < 1e6;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// Numbers and tensors as `read_model` takes them; the tensors are copied. Null with a reason where they do not fit.
void* davit_create(const int* numbers, int count, davit::Give give, int tensor_count, char* reason, size_t room) {
  Engine* engine = nullptr;
  try {
    engine = new Engine;
    Reader reader(numbers, count, give, tensor_count);
    read_model(reader, engine->model);
    return engine;
  } catch (const std::exception& error) {
    std::strncpy(reason, error.what(), room - 1);
    delete engine;
    return nullptr;
  }
}

void davit_destroy(void* engine) {
  std::lock_guard<std::mutex> turn(turns().mutex);
  delete static_cast<Engine*>(engine);
}

// Bytes that a forward pass of these images works in, zero where it cannot be; and what the engine holds already.
size_t davit_memory(const void* opaque, int batch, int height, int width, int threads) {
  const Engine& engine = *static_cast<const Engine*>(opaque);
  if (!countable(engine.model, batch, height, width) || threads < 1) return 0;
  const Workspace space(Pieces(), engine.model, maps_of(engine.model, batch, height, width), threads);
  return space.used * sizeof(float);
}

size_t davit_held(const void* engine) { return static_cast<const Engine*>(engine)->memory.size() * sizeof(float); }

// Images (batch, channels, height, width) to logits or maps, see `forward`.
int davit_forward(void* opaque, const float* pixels, int batch, int channels, int height, int width, int threads,
                  float* const* outputs) {
  Engine& engine = *static_cast<Engine*>(opaque);
  const Model& model = engine.model;
  if (!countable(model, batch, height, width) || threads < 1 || channels != model.in_channels) return INVALID;
  std::lock_guard<std::mutex> turn(turns().mutex);
  try {
    const auto maps = maps_of(model, batch, height, width);
    const size_t needed = Workspace(Pieces(), model, maps, threads).used;
    if (needed > engine.memory.size()) {
      engine.memory = Buffer();  // first the old goes, so that the two are never there together
      engine.memory = Buffer(needed);
    }
    const Workspace space(Pieces(engine.memory.data()), model, maps, threads);
    forward(Context{model, space, turns().pool, threads}, Images{pixels, batch, channels, height, width}, outputs);
    return OK;
  } catch (const std::bad_alloc&) {
    return OUT_OF_MEMORY;
  }
}

}  // extern "C"
#pragma GCC visibility pop
