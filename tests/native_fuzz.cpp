// Random architectures, sizes, batches and threads through the native engine, to be compiled with sanitizers. Prints how
// many forward passes it made; ends with 1 where an image's answer depends on its batch, its threads, or what was
// computed before. Arguments: how many architectures, first seed.
#include "engine.cpp"

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

namespace {

std::mt19937 generator;

int between(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }

std::vector<float> noise(size_t count, float scale) {
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

// Numbers and tensors as `read_model` wants them; in half of them some layers in int8.
struct Architecture {
  std::vector<int> numbers;
  std::vector<std::vector<float>> floats;
  std::vector<std::vector<int8_t>> codes;
  std::vector<const void*> tensors;
  int in_channels = between(1, 4), classes = between(0, 1) * between(1, 70);
  bool coded = between(0, 1);
  std::vector<int> widths;

  const std::vector<float>& tensor(size_t count, float scale) {
    floats.push_back(noise(count, scale));
    tensors.push_back(floats.back().data());
    return floats.back();
  }
  void layer(size_t inputs, size_t outputs, bool in_codes = false) {
    const float scale = 1.0f / std::sqrt(static_cast<float>(inputs));
    if (in_codes) {
      codes.emplace_back(inputs * outputs);
      for (int8_t& code : codes.back()) code = static_cast<int8_t>(between(-127, 127));
      tensors.push_back(codes.back().data());
      tensor(outputs, scale / 73.0f);
    } else {
      tensor(inputs * outputs, scale);
    }
    tensor(outputs, 0.3f);
  }
  void norm(size_t width) {
    tensor(width, 1.0f);
    tensor(width, 0.3f);
  }
  bool toss() {  // whether a layer is in int8
    numbers.push_back(coded && between(0, 1));
    return numbers.back();
  }
  void block(size_t width, bool channel, bool position, size_t hidden) {
    if (position) layer(9, width);
    const bool qkv = toss(), projection = toss();
    layer(width, channel ? 2 * width : 3 * width, qkv);
    if (channel) layer(width, width, qkv);
    else tensor(2 * width, 1.0f);
    layer(width, width, projection);
    if (!hidden) return;
    if (position) layer(9, width);
    const bool fc1 = toss(), fc2 = toss();
    layer(width, hidden, fc1);
    layer(hidden, width, fc2);
  }
  Architecture() {
    const int kernel = between(2, 3), position = between(0, 1), norms = classes ? 0 : between(0, 1);
    const bool mlp = between(0, 3) > 0;
    std::vector<int> channel{between(0, 1)};
    if (between(0, 2)) channel.push_back(1 - channel[0]);
    numbers = {in_channels, kernel, between(1, 9), between(0, 1), position, norms, classes, static_cast<int>(channel.size())};
    numbers.insert(numbers.end(), channel.begin(), channel.end());
    for (int s = 0; s < 4; ++s) {
      const int width = 32 * between(1, 4), depth = between(1, 2);
      const int hidden = !mlp ? 0 : between(0, 1) ? 32 * between(1, 12) : between(1, 3 * width);
      numbers.insert(numbers.end(), {width, depth, hidden});
      if (s) {
        norm(widths.back());
        layer(static_cast<size_t>(kernel * kernel) * widths.back(), width, toss());
      } else {
        layer(49 * in_channels, width);
        norm(width);
      }
      for (int d = 0; d < depth; ++d) {
        for (const int is_channel : channel) block(width, is_channel, position, hidden);
      }
      if (norms) norm(width);
      widths.push_back(width);
    }
    if (classes) layer(widths.back(), classes);
  }
};

// Outputs of exactly the size they should have, so that a sanitizer sees one float too many.
std::vector<std::vector<float>> run(void* engine, const Architecture& made, const std::vector<float>& pixels, int batch,
                                    int height, int width, int threads) {
  std::vector<std::vector<float>> outputs;
  if (made.classes) outputs.emplace_back(batch * made.classes);
  for (int s = 0; s < 4 && !made.classes; ++s) {
    const int stride = 4 << s;
    outputs.emplace_back(static_cast<size_t>(batch) * made.widths[s] * ((height - 1) / stride + 1) *
                         ((width - 1) / stride + 1));
  }
  std::vector<float*> pointers;
  for (std::vector<float>& output : outputs) pointers.push_back(output.data());
  if (davit_memory(engine, batch, height, width, threads) == 0 ||
      davit_forward(engine, pixels.data(), batch, made.in_channels, height, width, threads, pointers.data())) {
    std::exit(2);
  }
  return outputs;
}

bool near(const std::vector<float>& found, const float* wanted, float tolerance) {
  float largest = 1.0f, difference = 0.0f;
  for (size_t i = 0; i < found.size(); ++i) {
    largest = std::max(largest, std::fabs(wanted[i]));
    difference = std::max(difference, std::fabs(found[i] - wanted[i]));
    if (!std::isfinite(found[i])) return false;
  }
  return difference <= tolerance * largest;
}

}  // namespace

int main(int, char** arguments) {
  generator.seed(std::atoi(arguments[2]));
  int passes = 0;
  for (int count = std::atoi(arguments[1]); count > 0; --count) {
    const Architecture made;
    char reason[100] = "";
    static const Architecture* current;
    current = &made;
    const auto give = [](int number) -> const void* { return current->tensors[number]; };
    void* engine = davit_create(made.numbers.data(), static_cast<int>(made.numbers.size()), give,
                                static_cast<int>(made.tensors.size()), reason, sizeof reason);
    if (!engine) {
      std::printf("refused: %s\n", reason);
      return 1;
    }
    for (int turn = 0; turn < 4; ++turn) {
      const int batch = between(1, 5), height = between(1, 90), width = between(1, 90);
      const size_t image = static_cast<size_t>(made.in_channels) * height * width;
      const std::vector<float> pixels = noise(batch * image, 1.0f);
      const auto together = run(engine, made, pixels, batch, height, width, between(1, 4));
      const int which = between(0, batch - 1);
      const std::vector<float> one(pixels.begin() + which * image, pixels.begin() + (which + 1) * image);
      const auto alone = run(engine, made, one, 1, height, width, between(1, 4));
      // A code that rounds to its neighbour changes all that follows.
      const float tolerance = made.coded ? 0.3f : 3e-3f;
      for (size_t i = 0; i < alone.size(); ++i) {
        if (!near(alone[i], together[i].data() + which * alone[i].size(), tolerance)) {
          std::printf("image %d of %d of %d x %d depends on what stands beside it\n", which, batch, height, width);
          return 1;
        }
      }
      passes += 2;
    }
    davit_destroy(engine);
  }
  std::printf("%d\n", passes);
  return 0;
}
