// What lies between the products of a decoder layer of Llama's shape, for CPUs: see __init__.py for the contracts.
// Numbers are read as bfloat16 or float32, computed as float32 and rounded once. Vectors are the compiler's own, so
// that it chooses the instructions. Work is divided by at::parallel_for, whose threads are those of torch.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/utils/pybind.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <optional>

namespace {

using at::Tensor;
constexpr int64_t LANES = 16;
constexpr int64_t BLOCK = 16;       // keys whose scores are one vector
constexpr int64_t CHUNK = 256;      // keys whose softmax is one
constexpr int64_t MAX_SIZE = 256;   // of a head, for rotary factors
constexpr int64_t GRAIN = 8192;     // numbers that are worth another thread
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
constexpr Ints LANE = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

inline Floats load(const float* from) {
  Floats out;
  std::memcpy(&out, from, sizeof out);
  return out;
}

inline Floats load(const at::BFloat16* from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  return (Floats)(__builtin_convertvector(halves, Words) << 16);
}

inline void save(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }

inline Words rounded(Floats value) {  // in the upper halves: to the nearest, ties to even; a NaN stays one
  Words bits = (Words)value;
  return value == value ? bits + (((bits >> 16) & 1u) + 0x7fffu) : bits | 0x400000u;
}

inline void save(at::BFloat16* to, Floats value) {
  Halves halves = __builtin_convertvector(rounded(value) >> 16, Halves);
  std::memcpy(to, &halves, sizeof halves);
}

// 2 * LANES numbers, in any order that is the same for all of one type: for bfloat16 the even ones and the odd ones.
struct Pair {
  Floats first, second;
};

inline Pair load_pair(const float* from) { return {load(from), load(from + LANES)}; }

inline Pair load_pair(const at::BFloat16* from) {
  Words words;
  std::memcpy(&words, from, sizeof words);
  return {(Floats)(words << 16), (Floats)(words & 0xffff0000u)};
}

inline void save_pair(float* to, Pair pair) {
  save(to, pair.first);
  save(to + LANES, pair.second);
}

inline void save_pair(at::BFloat16* to, Pair pair) {
  Words words = (rounded(pair.first) >> 16) | (rounded(pair.second) & 0xffff0000u);
  std::memcpy(to, &words, sizeof words);
}

inline float sum(Floats value) {
  typedef float Eight __attribute__((vector_size(32)));
  typedef float Four __attribute__((vector_size(16)));
  Eight eight[2];
  std::memcpy(eight, &value, sizeof eight);
  Four four[2];
  eight[0] += eight[1];
  std::memcpy(four, eight, sizeof four);
  four[0] += four[1];
  return (four[0][0] + four[0][2]) + (four[0][1] + four[0][3]);
}

inline float maximum(Floats value) {
  float out = value[0];
  for (int64_t i = 1; i < LANES; ++i) out = std::max(out, static_cast<float>(value[i]));
  return out;
}

inline Floats splat(float value) { return value - Floats{}; }

inline Floats exponential(Floats x) {  // within 2 units in the last place; 0 below -87, infinity above 88
  Floats bounded = x < splat(-87.0f) ? splat(-87.0f) : x > splat(88.0f) ? splat(88.0f) : x;
  Ints whole = __builtin_convertvector(bounded * 1.44269504f + 128.5f, Ints) - 128;  // positive: truncated downwards
  Floats n = __builtin_convertvector(whole, Floats);
  Floats r = bounded - n * 0.693359375f + n * 2.12194440e-4f;
  Floats p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  Floats power = p * (Floats)((whole + 127) << 23);
  return x < splat(-87.0f) ? Floats{} : x > splat(88.0f) ? splat(std::numeric_limits<float>::infinity()) : power;
}

template <typename F>
void by_dtype(const Tensor& like, const F& compute) {
  if (like.scalar_type() == at::kBFloat16) return compute(at::BFloat16{});
  TORCH_CHECK(like.scalar_type() == at::kFloat, "kernels: dtype ", like.scalar_type(), " is not served");
  compute(float{});
}

void check(const Tensor& tensor, at::ScalarType dtype, int64_t dimensions, const char* name) {
  TORCH_CHECK(tensor.device().is_cpu() && tensor.scalar_type() == dtype && tensor.dim() == dimensions &&
                  tensor.is_contiguous(),
              "kernels: ", name, " must be a contiguous CPU tensor of ", dtype, " with ", dimensions, " dimensions");
}

template <typename T>
inline float scale_to_one(const T* row, int64_t size, double epsilon) {
  Floats squares{};
  for (int64_t i = 0; i < size; i += LANES) {
    Floats x = load(row + i);
    squares += x * x;
  }
  return 1.0f / std::sqrt(sum(squares) / size + static_cast<float>(epsilon));
}

Tensor rms_norm(const Tensor& rows, const Tensor& weight, double epsilon) {
  check(rows, rows.scalar_type(), 2, "rows");
  check(weight, at::kFloat, 1, "weight");
  int64_t size = rows.size(1);
  TORCH_CHECK(weight.size(0) == size && size % LANES == 0, "kernels: rows of ", size, " numbers");
  Tensor out = at::empty(rows.sizes(), rows.options());
  const float* weights = weight.const_data_ptr<float>();
  by_dtype(rows, [&](auto type) {
    using T = decltype(type);
    const T* from = rows.const_data_ptr<T>();
    T* to = out.mutable_data_ptr<T>();
    at::parallel_for(0, rows.size(0), std::max<int64_t>(1, GRAIN / size), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* x = from + row * size;
        float scale = scale_to_one(x, size, epsilon);
        for (int64_t i = 0; i < size; i += LANES) save(to + row * size + i, load(x + i) * scale * load(weights + i));
      }
    });
  });
  return out;
}

Tensor silu_mul(const Tensor& gate_up) {
  check(gate_up, gate_up.scalar_type(), 2, "gate_up");
  int64_t size = gate_up.size(1) / 2;
  TORCH_CHECK(gate_up.size(1) % (4 * LANES) == 0, "kernels: rows of ", gate_up.size(1), " numbers");
  Tensor out = at::empty({gate_up.size(0), size}, gate_up.options());
  by_dtype(gate_up, [&](auto type) {
    using T = decltype(type);
    const T* from = gate_up.const_data_ptr<T>();
    T* to = out.mutable_data_ptr<T>();
    constexpr int64_t WIDTH = 2 * LANES;
    int64_t pieces = size / WIDTH;
    auto gated = [](Floats gate, Floats up) { return gate / (1.0f + exponential(-gate)) * up; };
    at::parallel_for(0, gate_up.size(0) * pieces, GRAIN / WIDTH, [&](int64_t begin, int64_t end) {
      for (int64_t piece = begin; piece < end; ++piece) {
        int64_t row = piece / pieces, i = piece % pieces * WIDTH;
        Pair gate = load_pair(from + 2 * row * size + i), up = load_pair(from + (2 * row + 1) * size + i);
        save_pair(to + row * size + i, {gated(gate.first, up.first), gated(gate.second, up.second)});
      }
    });
  });
  return out;
}

Tensor rotary_and_store(const Tensor& projected, const Tensor& cos, const Tensor& sin, const Tensor& slots,
                        const Tensor& store, const std::optional<Tensor>& query_norm,
                        const std::optional<Tensor>& key_norm, double epsilon) {
  check(projected, projected.scalar_type(), 2, "projected");
  check(cos, projected.scalar_type(), 2, "cos");
  check(sin, projected.scalar_type(), 2, "sin");
  check(slots, at::kLong, 1, "slots");
  check(store, projected.scalar_type(), 4, "store");
  int64_t rows = projected.size(0), size = cos.size(1), half = size / 2, key_heads = store.size(2);
  int64_t query_heads = projected.size(1) / size - 2 * key_heads, capacity = store.size(0) * store.size(1);
  TORCH_CHECK(size % (2 * LANES) == 0 && size <= MAX_SIZE && store.size(3) == 2 * size && query_heads > 0 &&
                  projected.size(1) == (query_heads + 2 * key_heads) * size && cos.size(0) == rows &&
                  sin.sizes() == cos.sizes() && slots.size(0) == rows,
              "kernels: shapes of projected ", projected.sizes(), ", cos ", cos.sizes(), ", store ", store.sizes());
  for (const auto& norm : {query_norm, key_norm}) {
    if (!norm) continue;
    check(*norm, at::kFloat, 1, "norm");
    TORCH_CHECK(norm->size(0) == size, "kernels: the norm of a head");
  }
  Tensor queries = at::empty({rows, query_heads, size}, projected.options());
  const int64_t* slot_of = slots.const_data_ptr<int64_t>();
  for (int64_t row = 0; row < rows; ++row) TORCH_CHECK(slot_of[row] >= 0 && slot_of[row] < capacity, "kernels: slots");
  by_dtype(projected, [&](auto type) {
    using T = decltype(type);
    const T *from = projected.const_data_ptr<T>(), *cosines = cos.const_data_ptr<T>(), *sines = sin.const_data_ptr<T>();
    T *to_queries = queries.mutable_data_ptr<T>(), *to_store = store.mutable_data_ptr<T>();
    auto turn = [&](const T* head, T* to, int64_t row, const std::optional<Tensor>& norm) {
      const T *c = cosines + row * size, *s = sines + row * size;
      const float* weights = norm ? norm->const_data_ptr<float>() : nullptr;
      float scale = norm ? scale_to_one(head, size, epsilon) : 1.0f;
      for (int64_t i = 0; i < half; i += LANES) {
        Floats low = load(head + i), high = load(head + half + i);
        if (norm) low *= scale * load(weights + i), high *= scale * load(weights + half + i);
        save(to + i, low * load(c + i) - high * load(s + i));
        save(to + half + i, high * load(c + half + i) + low * load(s + half + i));
      }
    };
    at::parallel_for(0, rows, std::max<int64_t>(1, GRAIN / projected.size(1)), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* heads = from + row * projected.size(1);
        for (int64_t h = 0; h < query_heads; ++h)
          turn(heads + h * size, to_queries + (row * query_heads + h) * size, row, query_norm);
        for (int64_t h = 0; h < key_heads; ++h) {
          T* to = to_store + (slot_of[row] * key_heads + h) * 2 * size;
          turn(heads + (query_heads + h) * size, to, row, key_norm);
          std::memcpy(to + size, heads + (query_heads + key_heads + h) * size, size * sizeof(T));
        }
      }
    });
  });
  return queries;
}

// From vectors a and b to their sums over lanes that differ in bit S: those of a where the bit is 0, of b where it is 1.
template <int32_t S>
inline Floats halve(Floats a, Floats b) {
  constexpr Ints from = (LANE & S) / S * 16;
  return __builtin_shuffle(a, b, LANE + from) + __builtin_shuffle(a, b, (LANE ^ S) + from);
}

// One sequence's attention of the `repeats` queries that share a head of keys: a softmax over chunks of keys, whose
// weights are relative to the greatest score so far. TOGETHER queries share the values that are read.
template <typename T, int64_t SIZE, int64_t TOGETHER>
void attend_one(const T* queries, T* out, const T* store, const int64_t* table, int64_t page_tokens, int64_t stride,
                int64_t first, int64_t last, int64_t repeats, float scale, float* scratch) {
  constexpr int64_t PIECES = SIZE / LANES;
  constexpr float LEAST = std::numeric_limits<float>::lowest();
  int64_t padded = (repeats + TOGETHER - 1) / TOGETHER * TOGETHER;
  float *query = scratch, *total = query + padded * SIZE, *scores = total + padded * SIZE;
  float *greatest = scores + padded * CHUNK, *weight_sum = greatest + padded, *fade = weight_sum + padded;
  std::fill(scratch, fade + padded, 0.0f);
  for (int64_t r = 0; r < repeats; ++r) {
    for (int64_t i = 0; i < SIZE; i += 2 * LANES) {
      Pair pair = load_pair(queries + r * SIZE + i);
      save(query + r * SIZE + i, pair.first * scale);
      save(query + r * SIZE + i + LANES, pair.second * scale);
    }
    greatest[r] = LEAST;
  }
  Floats rows[BLOCK][PIECES] = {};  // keys or values
  auto read = [&](int64_t start, int64_t count, int64_t offset) {
    int64_t page = start / page_tokens, in_page = start % page_tokens;
    for (int64_t k = 0; k < count; ++k) {
      const T* stored = store + (table[page] * page_tokens + in_page) * stride + offset;
      for (int64_t i = 0; i < PIECES; i += 2) {
        Pair pair = load_pair(stored + i * LANES);
        rows[k][i] = pair.first, rows[k][i + 1] = pair.second;
      }
      if (++in_page == page_tokens) in_page = 0, ++page;
    }
  };
  for (int64_t chunk = first; chunk <= last; chunk += CHUNK) {
    int64_t end = std::min(chunk + CHUNK, last + 1);
    for (int64_t start = chunk; start < end; start += BLOCK) {
      int64_t count = std::min(BLOCK, end - start);
      read(start, count, 0);
      for (int64_t r = 0; r < repeats; ++r) {
        const float* q = query + r * SIZE;
        Floats part[BLOCK];
#pragma GCC unroll 16
        for (int64_t k = 0; k < BLOCK; ++k) {
          part[k] = load(q) * rows[k][0];
#pragma GCC unroll 8
          for (int64_t i = 1; i < PIECES; ++i) part[k] += load(q + i * LANES) * rows[k][i];
        }
#pragma GCC unroll 8
        for (int64_t k = 0; k < 8; ++k) part[k] = halve<8>(part[k], part[k + 8]);
#pragma GCC unroll 4
        for (int64_t k = 0; k < 4; ++k) part[k] = halve<4>(part[k], part[k + 4]);
#pragma GCC unroll 2
        for (int64_t k = 0; k < 2; ++k) part[k] = halve<2>(part[k], part[k + 2]);
        Floats score = halve<1>(part[0], part[1]);
        if (count < BLOCK) score = LANE < static_cast<int32_t>(count) ? score : splat(LEAST);
        save(scores + r * CHUNK + start - chunk, score);
      }
    }
    int64_t blocks = (end - chunk + BLOCK - 1) / BLOCK;
    for (int64_t r = 0; r < repeats; ++r) {
      Floats top = splat(greatest[r]), weights{};
      float* of = scores + r * CHUNK;
      for (int64_t i = 0; i < blocks; ++i) {
        Floats score = load(of + i * BLOCK);
        top = score > top ? score : top;
      }
      float most = maximum(top);
      for (int64_t i = 0; i < blocks; ++i) {
        Floats weight = exponential(load(of + i * BLOCK) - most);
        weights += weight;
        save(of + i * BLOCK, weight);
      }
      fade[r] = exponential(splat(greatest[r] - most))[0];
      weight_sum[r] = weight_sum[r] * fade[r] + sum(weights);
      greatest[r] = most;
      for (int64_t i = 0; i < SIZE; i += LANES) save(total + r * SIZE + i, load(total + r * SIZE + i) * fade[r]);
    }
    for (int64_t start = chunk; start < end; start += BLOCK) {
      read(start, std::min(BLOCK, end - start), SIZE);
      for (int64_t r = 0; r < padded; r += TOGETHER) {
#pragma GCC unroll 8
        for (int64_t i = 0; i < PIECES; i += 2) {
          Floats low[TOGETHER], high[TOGETHER];
          float* at = total + r * SIZE + i * LANES;
          const float* weights = scores + r * CHUNK + start - chunk;
          for (int64_t t = 0; t < TOGETHER; ++t) low[t] = load(at + t * SIZE), high[t] = load(at + t * SIZE + LANES);
#pragma GCC unroll 16
          for (int64_t k = 0; k < BLOCK; ++k) {
            for (int64_t t = 0; t < TOGETHER; ++t) {
              low[t] += weights[t * CHUNK + k] * rows[k][i];
              high[t] += weights[t * CHUNK + k] * rows[k][i + 1];
            }
          }
          for (int64_t t = 0; t < TOGETHER; ++t) save(at + t * SIZE, low[t]), save(at + t * SIZE + LANES, high[t]);
        }
      }
    }
  }
  for (int64_t r = 0; r < repeats; ++r) {
    for (int64_t i = 0; i < SIZE; i += 2 * LANES) {
      const float* from = total + r * SIZE + i;
      save_pair(out + r * SIZE + i, {load(from) / weight_sum[r], load(from + LANES) / weight_sum[r]});
    }
  }
}

template <typename T>
auto one_of(int64_t size, int64_t repeats) {
  TORCH_CHECK(size == 32 || size == 64 || size == 96 || size == 128, "kernels: heads of ", size, " numbers");
  if (size == 32) return repeats == 1 ? attend_one<T, 32, 1> : attend_one<T, 32, 4>;
  if (size == 64) return repeats == 1 ? attend_one<T, 64, 1> : attend_one<T, 64, 4>;
  if (size == 96) return repeats == 1 ? attend_one<T, 96, 1> : attend_one<T, 96, 4>;
  return repeats == 1 ? attend_one<T, 128, 1> : attend_one<T, 128, 4>;
}

void attend(const Tensor& queries, const Tensor& store, const Tensor& tables, const Tensor& positions, double scale,
            int64_t window, const Tensor& out) {
  check(queries, queries.scalar_type(), 3, "queries");
  check(out, queries.scalar_type(), 3, "out");
  check(store, queries.scalar_type(), 4, "store");
  check(tables, at::kLong, 2, "tables");
  check(positions, at::kLong, 1, "positions");
  int64_t rows = queries.size(0), heads = queries.size(1), size = queries.size(2), key_heads = store.size(2);
  int64_t page_tokens = store.size(1), width = tables.size(1), repeats = heads / std::max<int64_t>(1, key_heads);
  TORCH_CHECK(store.size(3) == 2 * size && repeats * key_heads == heads && repeats > 0 &&
                  tables.size(0) == rows && positions.size(0) == rows && out.sizes() == queries.sizes() && window > 0,
              "kernels: shapes of queries ", queries.sizes(), ", store ", store.sizes(), ", tables ", tables.sizes());
  const int64_t *table_of = tables.const_data_ptr<int64_t>(), *position_of = positions.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < rows * width; ++i)
    TORCH_CHECK(table_of[i] >= 0 && table_of[i] < store.size(0), "kernels: page ", table_of[i]);
  for (int64_t row = 0; row < rows; ++row)
    TORCH_CHECK(position_of[row] >= 0 && position_of[row] < width * page_tokens, "kernels: position ", position_of[row]);
  by_dtype(queries, [&](auto type) {
    using T = decltype(type);
    const T *from = queries.const_data_ptr<T>(), *stored = store.const_data_ptr<T>();
    T* to = out.mutable_data_ptr<T>();
    auto one = one_of<T>(size, repeats);
    at::parallel_for(0, rows * key_heads, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch((repeats + 3) * (2 * size + CHUNK + 3));
      for (int64_t task = begin; task < end; ++task) {
        int64_t row = task / key_heads, head = task % key_heads, last = position_of[row];
        int64_t at = (row * heads + head * repeats) * size;
        one(from + at, to + at, stored + head * 2 * size, table_of + row * width, page_tokens, key_heads * 2 * size,
            std::max<int64_t>(0, last + 1 - window), last, repeats, static_cast<float>(scale), scratch.data());
      }
    });
  });
}

}  // namespace

PYBIND11_MODULE(CHATFLEET_KERNELS, module) {
  module.def("rms_norm", &rms_norm);
  module.def("silu_mul", &silu_mul);
  module.def("rotary_and_store", &rotary_and_store);
  module.def("attend", &attend);
}
