// SPDX-License-Identifier: Apache-2.0
//
// Every function of csrc/quant/quant.h on the GPU against the same function on the CPU, bit for
// bit, with guard bytes around each output. `test_gpu_quant quick` runs a thinned-out list (for
// compute-sanitizer) and leaves out the inputs of more than 2^31 values.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "common/device_info.h"
#include "common/nibble.h"
#include "quant/divide.cuh"
#include "quant/quant.h"

namespace qutlass {
namespace {

bool quick = false;
cudaStream_t stream = nullptr;

void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}
#define CUDA_OK(call) require((call), #call)

// ---------------------------------------------------------------------------------------------
// Help: threads for the CPU side, random numbers, memory with guards.

const ParallelRunner kRunner = {
    [](int64_t begin, int64_t end, int64_t grain, ParallelRunner::RangeFn fn, void* context) {
      const int64_t workers = std::max(1u, std::thread::hardware_concurrency());
      const int64_t chunk = std::max(grain, (end - begin + workers - 1) / workers);
      if (end - begin <= chunk) return fn(context, begin, end);
      std::vector<std::thread> threads;
      for (int64_t at = begin; at < end; at += chunk) {
        threads.emplace_back(fn, context, at, std::min(end, at + chunk));
      }
      for (std::thread& thread : threads) thread.join();
    }};

struct Random {
  uint64_t state;
  explicit Random(uint64_t seed) : state(seed * 0x9E3779B97F4A7C15ull + 1) {}
  uint64_t bits() {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state * 0x2545F4914F6CDD1Dull;
  }
  int64_t below(int64_t n) {
    return static_cast<int64_t>((bits() >> 1) % static_cast<uint64_t>(n));
  }
  float unit() { return static_cast<float>(bits() >> 40) * 0x1p-24f; }  // [0, 1)
};

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

// Device memory that is taken once and handed out again and again, poisoned each time.
class Arena {
 public:
  static constexpr size_t kGuard = 512;
  static constexpr int kPoison = 0xA5;

  // `bytes` bytes, `offset` past an address that is aligned to 256.
  template <typename T = void>
  T* take(size_t bytes, size_t offset = 0) {
    bytes_ = bytes, offset_ = offset;
    const size_t need = bytes + offset + 2 * kGuard;
    if (need > capacity_) {
      if (base_ != nullptr) CUDA_OK(cudaFree(base_));
      CUDA_OK(cudaMalloc(&base_, need + need / 2));
      capacity_ = need + need / 2;
    }
    CUDA_OK(cudaMemsetAsync(base_, kPoison, need, stream));
    return reinterpret_cast<T*>(base_ + kGuard + offset);
  }
  template <typename T = void>
  T* upload(const void* from, size_t bytes, size_t offset = 0) {
    T* to = take<T>(bytes, offset);
    CUDA_OK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream));
    return to;
  }
  // The contents; `intact` says whether everything around them is still poison.
  std::vector<uint8_t> download(bool* intact) const {
    std::vector<uint8_t> all(bytes_ + offset_ + 2 * kGuard);
    CUDA_OK(cudaMemcpyAsync(all.data(), base_, all.size(), cudaMemcpyDeviceToHost, stream));
    CUDA_OK(cudaStreamSynchronize(stream));
    const auto poison = [](uint8_t byte) { return byte == kPoison; };
    const auto begin = all.begin() + static_cast<int64_t>(kGuard + offset_);
    const auto end = begin + static_cast<int64_t>(bytes_);
    *intact = std::all_of(all.begin(), begin, poison) && std::all_of(end, all.end(), poison);
    return {begin, end};
  }

 private:
  uint8_t* base_ = nullptr;
  size_t capacity_ = 0, bytes_ = 0, offset_ = 0;
};

const char* name_of(DType t) {
  switch (t) {
    case DType::kNone: return "none";
    case DType::kFloat32: return "f32";
    case DType::kBFloat16: return "bf16";
    case DType::kFloat16: return "f16";
    case DType::kInt8: return "i8";
    case DType::kUInt8: return "u8";
    case DType::kInt16: return "i16";
    case DType::kInt32: return "i32";
    case DType::kInt64: return "i64";
  }
  return "?";
}

void check_case(bool good, const std::string& name, const char* what) {
  if (test::failed(good)) std::cout << name << ": " << what << std::endl;
}

// float32 with any NaN equal to any other: which NaN a copy makes is nobody's promise.
bool same_floats(const std::vector<uint8_t>& got, const std::vector<float>& want) {
  if (got.size() != want.size() * 4) return false;
  for (size_t i = 0; i < want.size(); ++i) {
    float x;
    std::memcpy(&x, got.data() + 4 * i, 4);
    if (bits_of(x) != bits_of(want[i]) && !(std::isnan(x) && std::isnan(want[i]))) return false;
  }
  return true;
}

// ---------------------------------------------------------------------------------------------
// Data.

uint16_t narrow(float x, DType dtype) {
  if (dtype == DType::kBFloat16) {
    const uint32_t bits = bits_of(x);
    if (std::isnan(x)) return 0x7FFF;
    return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
  }
  const __half_raw raw = __half(x);
  return raw.x;
}

void store(std::vector<uint8_t>& to, int64_t index, float x, DType dtype) {
  if (dtype == DType::kFloat32) {
    std::memcpy(to.data() + 4 * index, &x, 4);
  } else {
    const uint16_t bits = narrow(x, dtype);
    std::memcpy(to.data() + 2 * index, &bits, 2);
  }
}

float largest(DType dtype) {
  return dtype == DType::kFloat16    ? 65504.f
         : dtype == DType::kBFloat16 ? 0x1.FEp127f
                                     : 0x1.FFFFFEp127f;
}

constexpr int kPatterns = 14;
constexpr int kFinitePatterns = 11;  // the first of them

// One row, each in its own way hard to quantize.
void fill_row(std::vector<uint8_t>& to, int64_t at, int64_t cols, DType dtype, int pattern,
              Random& random) {
  const float tiny = dtype == DType::kFloat16    ? 0x1p-24f
                     : dtype == DType::kBFloat16 ? 0x1p-133f
                                                 : 0x1p-149f;
  const auto gauss = [&] {
    return random.unit() + random.unit() + random.unit() + random.unit() - 2.f;
  };
  const float amax = 0x1p-3f * static_cast<float>(128 + random.below(128));
  const float whole = static_cast<float>(1 + random.below(100));
  for (int64_t k = 0; k < cols; ++k) {
    float x = 0;
    switch (pattern) {
      case 0: x = gauss(); break;
      case 1: x = gauss() * 1000.f + 300.f; break;
      case 2: x = 0.f; break;
      // Quotients at and beside k + 1/2: amax is a power of two times an integer, the rest are
      // halves of the step.
      case 3: x = k == 0 ? amax : amax / 254.f * static_cast<float>(random.below(509) - 254); break;
      case 4: x = k % 2 ? -1.5f : 1.5f; break;
      case 5: x = tiny * static_cast<float>(random.below(200) - 100); break;
      case 6: x = tiny * static_cast<float>(random.below(3)); break;
      case 7: x = largest(dtype) * (random.below(2) ? 1.f : -1.f); break;
      case 8: x = 3.f + random.unit(); break;
      case 9: x = -3.f - random.unit(); break;
      // Every exponent there is.
      case 10:
        x = std::ldexp(gauss(),
                       static_cast<int>(random.below(dtype == DType::kFloat16 ? 38 : 270)) -
                           (dtype == DType::kFloat16 ? 24 : 145));
        if (std::abs(x) > largest(dtype)) x = 1.f;
        break;
      case 11: x = gauss(); break;  // a NaN among them, set below
      case 12: x = gauss(); break;  // an Inf
      default: x = random.below(3) ? whole : std::numeric_limits<float>::infinity(); break;
    }
    store(to, at + k, x, dtype);
  }
  if (cols == 0) return;
  const int64_t place = at + random.below(cols);
  if (pattern == 11) store(to, place, std::numeric_limits<float>::quiet_NaN(), dtype);
  if (pattern == 12) store(to, place, -std::numeric_limits<float>::infinity(), dtype);
}

// Rows `stride` apart; what lies between them is NaN, so that reading it would show.
std::vector<uint8_t> make_matrix(int64_t rows, int64_t cols, int64_t stride, DType dtype,
                                 bool finite, Random& random) {
  const int64_t count = rows == 0 ? 0 : (rows - 1) * stride + cols;
  std::vector<uint8_t> x(static_cast<size_t>(count) * size_of(dtype));
  if (stride != cols) {
    for (int64_t i = 0; i < count; ++i) {
      store(x, i, std::numeric_limits<float>::quiet_NaN(), dtype);
    }
  }
  const int64_t first = random.below(kPatterns);
  for (int64_t r = 0; r < rows; ++r) {
    const int pattern = static_cast<int>((first + r) % (finite ? kFinitePatterns : kPatterns));
    fill_row(x, r * stride, cols, dtype, pattern, random);
  }
  return x;
}

// Scales that a caller should give, and now and then one that none should.
std::vector<uint8_t> make_scales(int64_t count, DType dtype, bool wild, Random& random) {
  const float odd[] = {0x1p-149f,
                       0x1.8p-127f,
                       0x1p-100f,
                       0x1.4p100f,
                       0x1.FFFFFEp127f,
                       0.f,
                       -0.f,
                       -0.25f,
                       std::numeric_limits<float>::infinity(),
                       std::numeric_limits<float>::quiet_NaN()};
  std::vector<uint8_t> scales(static_cast<size_t>(count) * size_of(dtype));
  for (int64_t i = 0; i < count; ++i) {
    const bool strange = wild && random.below(4) == 0;
    const float scale =
        strange ? odd[random.below(std::size(odd))] : 0.001f + random.unit() * 0.05f;
    store(scales, i, scale, dtype);
  }
  return scales;
}

std::vector<uint8_t> make_zeros(int64_t count, DType dtype, Random& random) {
  const int32_t odd[] = {200, -300, 5000000, INT32_MIN, INT32_MAX};
  std::vector<uint8_t> zeros(static_cast<size_t>(count) * size_of(dtype));
  for (int64_t i = 0; dtype != DType::kNone && i < count; ++i) {
    int32_t zero = static_cast<int32_t>(random.below(256)) - 128;
    if (dtype == DType::kInt32) {
      if (random.below(8) == 0) zero = odd[random.below(std::size(odd))];
      std::memcpy(zeros.data() + 4 * i, &zero, 4);
    } else if (dtype == DType::kInt8) {
      zeros[static_cast<size_t>(i)] = static_cast<uint8_t>(zero);
    } else {
      store(zeros, i, static_cast<float>(zero) + random.unit(), dtype);
    }
  }
  return zeros;
}

// ---------------------------------------------------------------------------------------------
// quantize

enum class Layout { kPlain, kStrided, kOddStride, kMisaligned, kCount };
const char* const kLayoutNames[] = {"plain", "strided", "odd stride", "misaligned"};

struct QuantizeCase {
  DType dtype;
  int64_t rows, cols;
  int bits;
  bool symmetric;
  int64_t group;  // 0: per row, -1: per tensor
  bool given;
  DType scale_dtype, zero_dtype;  // zero kNone: absent
  bool one_scale;                 // given with stride 0
  Layout layout;
  bool finite;

  std::string name() const {
    std::string s = "quantize " + std::string(name_of(dtype)) + " " + std::to_string(rows) + "x" +
                    std::to_string(cols) + " int" + std::to_string(bits) +
                    (symmetric ? " symmetric" : " asymmetric") +
                    (group == 0    ? " per row"
                     : group == -1 ? " per tensor"
                                   : " per group of " + std::to_string(group)) +
                    " " + kLayoutNames[static_cast<int>(layout)];
    if (given) {
      s += std::string(" given ") + (one_scale ? "one " : "") + name_of(scale_dtype) + " zero " +
           name_of(zero_dtype);
    }
    return s + (finite ? " finite" : "");
  }
};

void run_quantize(const QuantizeCase& c, uint64_t seed) {
  static Arena x_memory, q_memory, scale_memory, zero_memory, work_memory, given_scale, given_zero;
  Random random(seed);
  const int64_t per_16 = 16 / size_of(c.dtype);
  const int64_t stride = c.layout == Layout::kStrided     ? (c.cols + 2 * per_16) / per_16 * per_16
                         : c.layout == Layout::kOddStride ? c.cols + 3
                                                          : c.cols;
  const size_t offset = c.layout == Layout::kMisaligned ? size_of(c.dtype) : 0;
  const std::vector<uint8_t> x = make_matrix(c.rows, c.cols, stride, c.dtype, c.finite, random);

  QuantizeArguments a;
  a.x_dtype = c.dtype;
  a.rows = c.rows, a.cols = c.cols, a.x_stride = stride;
  a.bits = c.bits;
  a.symmetric = c.symmetric;
  a.per_tensor = c.group == -1;
  a.group_size = c.group > 0 ? c.group : c.cols;
  const int64_t groups = a.per_tensor ? 1 : c.cols / a.group_size;
  const size_t entries = a.per_tensor ? 1 : static_cast<size_t>(c.rows * groups);
  const size_t q_bytes = static_cast<size_t>(c.rows * c.cols * c.bits / 8);

  // CPU
  std::vector<uint8_t> q(q_bytes);
  std::vector<float> scale(entries);
  std::vector<int32_t> zero(entries);
  const int64_t given_count = c.one_scale || a.per_tensor ? 1 : static_cast<int64_t>(entries);
  const std::vector<uint8_t> scales =
      make_scales(given_count, c.given ? c.scale_dtype : DType::kFloat32, !c.finite, random);
  const std::vector<uint8_t> zeros = make_zeros(given_count, c.zero_dtype, random);
  const int64_t given_stride = given_count == 1 ? 0 : 1;
  if (c.given) a.scale_in = {scales.data(), c.scale_dtype, given_stride};
  if (c.zero_dtype != DType::kNone) a.zero_in = {zeros.data(), c.zero_dtype, given_stride};
  a.x = x.data();
  a.q = q.data();
  a.scale = scale.data();
  a.zero = c.symmetric ? nullptr : zero.data();
  const Status on_cpu = cpu::quantize(a, kRunner);
  check_case(on_cpu.ok(), c.name(), on_cpu.what);

  // GPU
  a.x = x_memory.upload(x.data(), x.size(), offset);
  if (c.given) a.scale_in.data = given_scale.upload(scales.data(), scales.size());
  if (a.zero_in.present()) a.zero_in.data = given_zero.upload(zeros.data(), zeros.size());
  a.q = q_memory.take(q_bytes, offset);  // an odd address, where x has one
  a.scale = scale_memory.take<float>(entries * 4);
  a.zero = c.symmetric ? nullptr : zero_memory.take<int32_t>(entries * 4);
  const size_t work_bytes = cuda::quantize_workspace_bytes(a);
  void* work = work_memory.take(work_bytes);
  const Status status = cuda::quantize(a, work, stream);
  check_case(status.ok(), c.name(), status.what);

  bool intact = false;
  check_case(q_memory.download(&intact) == q, c.name(), "q differs");
  check_case(intact, c.name(), "wrote beyond q");
  check_case(same_floats(scale_memory.download(&intact), scale), c.name(), "scale differs");
  check_case(intact, c.name(), "wrote beyond scale");
  work_memory.download(&intact);
  check_case(intact, c.name(), "wrote beyond the workspace");
  if (!c.symmetric) {
    const std::vector<uint8_t> got = zero_memory.download(&intact);
    check_case(std::memcmp(got.data(), zero.data(), got.size()) == 0, c.name(), "zero differs");
    check_case(intact, c.name(), "wrote beyond zero");
  }
}

constexpr DType kFloats[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};

void test_quantize() {
  const int64_t all_cols[] = {1,    7,    8,    15,    16,    31,    32,    33,
                              64,   96,   100,  127,   128,   512,   528,   1000,
                              4096, 5120, 8192, 11008, 16384, 28672, 32800, 70000};
  const int64_t all_rows[] = {0, 1, 2, 3, 17, 1000};
  uint64_t count = 0;
  for (const int64_t cols : all_cols) {
    for (const int64_t rows : all_rows) {
      if (rows * cols > 4096000) continue;
      for (const DType dtype : kFloats) {
        for (const int bits : {8, 4}) {
          if (bits == 4 && cols % kInt4Block != 0) continue;
          for (int form = 0; form < 10; ++form) {
            for (int l = 0; l < static_cast<int>(Layout::kCount); ++l) {
              ++count;
              const auto layout = static_cast<Layout>(l);
              if (rows == 1000 && (count + form) % 4 != 0) continue;
              if (quick && (count % 13 != 0 || rows * cols > 100000)) continue;
              if (layout == Layout::kStrided && rows < 2) continue;
              QuantizeCase c = {dtype,        rows,         cols,  bits,   form % 2 == 0, 0, false,
                                DType::kNone, DType::kNone, false, layout, count % 3 == 0};
              const DType scale_dtype = kFloats[count / 4 % 3];
              const DType zero_dtype = count / 12 % 3 == 0   ? DType::kInt8
                                       : count / 12 % 3 == 1 ? DType::kInt32
                                                             : DType::kNone;
              const int64_t group_choices[] = {32, 64, 128, 16, 8, 24, 1, 256, 1024, 4096, cols};
              switch (form / 2) {
                case 0: break;                                    // its own range, per row
                case 1: c.group = -1, c.finite = count % 4; break;  // per tensor
                case 2:                                           // per group
                  c.group = group_choices[count / 4 % std::size(group_choices)];
                  if (cols % c.group != 0) c.group = cols;
                  break;
                case 3:  // given, per row or per group
                  c.given = true;
                  c.group = count % 5 == 0 && cols % 32 == 0   ? 32
                            : count % 5 == 1 && cols % 16 == 0 ? 16
                                                               : 0;
                  break;
                default:  // given, one for all
                  c.given = true;
                  c.group = count % 2 ? -1 : 0;
                  c.one_scale = true;
                  break;
              }
              if (c.given) {
                c.scale_dtype = scale_dtype;
                if (!c.symmetric) c.zero_dtype = zero_dtype;
              }
              run_quantize(c, count);
            }
          }
        }
      }
    }
  }
  // Blocks beyond what a grid's second dimension could hold.
  for (const int bits : {8, 4}) {
    if (quick) break;
    run_quantize({DType::kBFloat16, 200000, 32, bits, true, 0, false, DType::kNone, DType::kNone,
                  false, Layout::kPlain, false},
                 1);
    run_quantize({DType::kBFloat16, 70000, 1056, bits, false, 0, false, DType::kNone, DType::kNone,
                  false, Layout::kStrided, false},
                 2);
  }
}

// A whole tensor without a value has the scale of zeros.
void test_quantize_empty_tensor() {
  run_quantize({DType::kBFloat16, 0, 64, 8, true, -1, false, DType::kNone, DType::kNone, false,
                Layout::kPlain, true},
               3);
  run_quantize({DType::kFloat32, 0, 64, 8, false, -1, false, DType::kNone, DType::kNone, false,
                Layout::kPlain, true},
               4);
}

void test_refusals() {
  float scale = 0;
  QuantizeArguments a;
  a.x_dtype = DType::kBFloat16;
  a.rows = 1, a.cols = 40, a.group_size = 40, a.scale = &scale;
  a.bits = 3;
  CHECK(cuda::quantize(a, nullptr, stream).code == StatusCode::kInvalidArgument);
  a.bits = 4;
  CHECK(cuda::quantize(a, nullptr, stream).code == StatusCode::kInvalidArgument);
  a.bits = 8, a.group_size = 30;
  CHECK(cuda::quantize(a, nullptr, stream).code == StatusCode::kInvalidArgument);
  a.group_size = 40, a.symmetric = false;
  CHECK(cuda::quantize(a, nullptr, stream).code == StatusCode::kInvalidArgument);
  a.symmetric = true, a.per_tensor = true;
  CHECK(cuda::quantize(a, nullptr, stream).code == StatusCode::kInvalidArgument);
  a.per_tensor = false, a.x_dtype = DType::kInt8;
  CHECK(cuda::quantize(a, nullptr, stream).code == StatusCode::kInvalidArgument);
  PackArguments pack;
  pack.rows = 1, pack.cols = 33, pack.w_dtype = DType::kInt8;
  CHECK(cuda::pack_int4(pack, stream).code == StatusCode::kInvalidArgument);
  pack.cols = 32, pack.w_dtype = DType::kFloat32;
  CHECK(cuda::pack_int4(pack, stream).code == StatusCode::kInvalidArgument);
}

// ---------------------------------------------------------------------------------------------
// dequantize

void test_dequantize() {
  static Arena q_memory, scale_memory, zero_memory, out_memory;
  const DType zero_dtypes[] = {DType::kNone, DType::kInt32, DType::kInt8, DType::kFloat32,
                               DType::kBFloat16};
  uint64_t count = 0;
  for (const int64_t cols : {1, 7, 8, 16, 32, 33, 64, 96, 100, 128, 4096, 11008, 70000}) {
    for (const int64_t rows : {0, 1, 3, 17}) {
      for (const int bits : {8, 4}) {
        if (bits == 4 && cols % kInt4Block != 0) continue;
        for (const int64_t wanted_group : {0, 32, 16, 8, 24, 128, 1}) {
          const int64_t group = wanted_group == 0 || cols % wanted_group != 0 ? cols : wanted_group;
          for (const DType out_dtype : kFloats) {
            for (const DType zero_dtype : zero_dtypes) {
              for (const bool misaligned : {false, true}) {
                ++count;
                if (quick && count % 29 != 0) continue;
                Random random(count);
                const DType scale_dtype = kFloats[count / 2 % 3];
                const bool one = count % 7 == 0;
                const int64_t entries = one ? 1 : rows * (cols / group);
                const size_t q_bytes = static_cast<size_t>(rows * cols * bits / 8);
                const size_t out_bytes = static_cast<size_t>(rows * cols * size_of(out_dtype));
                std::vector<uint8_t> q(q_bytes), out(out_bytes);
                for (uint8_t& byte : q) byte = static_cast<uint8_t>(random.bits());
                const std::vector<uint8_t> scales = make_scales(entries, scale_dtype, true, random);
                const std::vector<uint8_t> zeros = make_zeros(entries, zero_dtype, random);
                DequantizeArguments a;
                a.rows = rows, a.cols = cols, a.bits = bits, a.group_size = group;
                a.out_dtype = out_dtype;
                a.q = q.data(), a.out = out.data();
                a.scale = {scales.data(), scale_dtype, one ? 0 : 1};
                if (zero_dtype != DType::kNone) a.zero = {zeros.data(), zero_dtype, one ? 0 : 1};
                const std::string name = "dequantize int" + std::to_string(bits) + " " +
                                         std::to_string(rows) + "x" + std::to_string(cols) +
                                         " group " + std::to_string(group) + " to " +
                                         name_of(out_dtype) + " zero " + name_of(zero_dtype) +
                                         (misaligned ? " misaligned" : "");
                check_case(cpu::dequantize(a, kRunner).ok(), name, "refused on the CPU");
                const size_t offset = misaligned ? size_of(out_dtype) : 0;
                a.q = q_memory.upload(q.data(), q.size(), misaligned);
                a.scale.data = scale_memory.upload(scales.data(), scales.size());
                if (a.zero.present()) a.zero.data = zero_memory.upload(zeros.data(), zeros.size());
                a.out = out_memory.take(out_bytes, offset);
                const Status status = cuda::dequantize(a, stream);
                check_case(status.ok(), name, status.what);
                bool intact = false;
                const std::vector<uint8_t> got = out_memory.download(&intact);
                check_case(intact, name, "wrote beyond the output");
                bool same = true;
                if (out_dtype == DType::kFloat32) {
                  std::vector<float> want(out_bytes / 4);
                  if (!want.empty()) std::memcpy(want.data(), out.data(), out_bytes);
                  same = same_floats(got, want);
                } else {
                  // NaN of 16 bits: exponent all ones and a mantissa.
                  const int infinity = out_dtype == DType::kBFloat16 ? 0x7F80 : 0x7C00;
                  for (size_t i = 0; i < out_bytes; i += 2) {
                    uint16_t x, y;
                    std::memcpy(&x, &got[i], 2), std::memcpy(&y, &out[i], 2);
                    same &= x == y || ((x & 0x7FFF) > infinity && (y & 0x7FFF) > infinity);
                  }
                }
                check_case(same, name, "differs");
              }
            }
          }
        }
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------
// pack_int4, unpack_int4, weight_sums

template <typename W>
void run_pack(DType dtype, int64_t rows, int64_t cols, int64_t stride, bool misaligned,
              int64_t bad_count, uint64_t seed) {
  static Arena w_memory, packed_memory, bad_memory;
  Random random(seed);
  const std::string name = "pack_int4 " + std::string(name_of(dtype)) + " " + std::to_string(rows) +
                           "x" + std::to_string(cols) + " stride " + std::to_string(stride) +
                           (misaligned ? " misaligned" : "") + " bad " + std::to_string(bad_count);
  const bool is_signed = std::numeric_limits<W>::is_signed;
  std::vector<W> w(static_cast<size_t>(rows == 0 ? 0 : (rows - 1) * stride + cols), W(100));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < cols; ++k) {
      w[static_cast<size_t>(r * stride + k)] =
          static_cast<W>(random.below(is_signed ? 16 : 8) - (is_signed ? 8 : 0));
    }
  }
  const W odd[] = {W(8),
                   static_cast<W>(-9),
                   std::numeric_limits<W>::max(),
                   std::numeric_limits<W>::min(),
                   static_cast<W>(127),
                   static_cast<W>(int64_t{1} << 32)};
  for (int64_t i = 0; i < bad_count; ++i) {
    w[static_cast<size_t>(random.below(rows) * stride + random.below(cols))] =
        odd[random.below(std::size(odd))];
  }
  std::vector<uint8_t> packed(static_cast<size_t>(rows * cols / 2));
  int64_t first_bad = 0;
  PackArguments a;
  a.w = w.data(), a.w_dtype = dtype;
  a.rows = rows, a.cols = cols, a.w_stride = stride;
  a.packed = packed.data();
  a.first_bad = &first_bad;
  check_case(cpu::pack_int4(a, kRunner).ok(), name, "refused on the CPU");

  a.w = w_memory.upload(w.data(), w.size() * sizeof(W), misaligned ? sizeof(W) : 0);
  a.packed = packed_memory.take<uint8_t>(packed.size(), misaligned);
  a.first_bad = bad_memory.take<int64_t>(8);
  const Status status = cuda::pack_int4(a, stream);
  check_case(status.ok(), name, status.what);
  bool intact = false;
  check_case(packed_memory.download(&intact) == packed, name, "packed differs");
  check_case(intact, name, "wrote beyond packed");
  const std::vector<uint8_t> bad = bad_memory.download(&intact);
  check_case(intact && std::memcmp(bad.data(), &first_bad, 8) == 0, name, "first_bad differs");
  if (seed % 4 == 0) {  // nobody asks
    a.first_bad = nullptr;
    a.packed = packed_memory.take<uint8_t>(packed.size(), misaligned);
    check_case(cuda::pack_int4(a, stream).ok(), name, "refused without first_bad");
    check_case(packed_memory.download(&intact) == packed, name, "packed differs without first_bad");
  }
}

void test_pack() {
  uint64_t count = 0;
  for (const int64_t cols : {32, 64, 96, 128, 4096, 11008}) {
    for (const int64_t rows : {0, 1, 3, 17, 300}) {
      for (const int64_t extra : {0, 16, 3}) {
        for (const bool misaligned : {false, true}) {
          for (const int64_t bad : {0, 1, 40}) {
            ++count;
            if (quick && count % 7 != 0) continue;
            if (rows == 0 && bad > 0) continue;
            run_pack<int8_t>(DType::kInt8, rows, cols, cols + extra, misaligned, bad, count);
            run_pack<uint8_t>(DType::kUInt8, rows, cols, cols + extra, misaligned, bad, count);
            run_pack<int16_t>(DType::kInt16, rows, cols, cols + extra, misaligned, bad, count);
            run_pack<int32_t>(DType::kInt32, rows, cols, cols + extra, misaligned, bad, count);
            run_pack<int64_t>(DType::kInt64, rows, cols, cols + extra, misaligned, bad, count);
          }
        }
      }
    }
  }
}

void test_unpack() {
  static Arena packed_memory, w_memory;
  for (const int64_t cols : {32, 64, 96, 4096, 70016}) {
    for (const int64_t rows : {0, 1, 3, 100}) {
      for (const int misaligned : {0, 1, 8}) {
        Random random(static_cast<uint64_t>(cols + rows + misaligned));
        std::vector<uint8_t> packed(static_cast<size_t>(rows * cols / 2));
        for (uint8_t& byte : packed) byte = static_cast<uint8_t>(random.bits());
        std::vector<uint8_t> w(static_cast<size_t>(rows * cols));
        UnpackArguments a;
        a.rows = rows, a.cols = cols;
        a.packed = packed.data(), a.w = reinterpret_cast<int8_t*>(w.data());
        const std::string name = "unpack_int4 " + std::to_string(rows) + "x" +
                                 std::to_string(cols) + " offset " + std::to_string(misaligned);
        check_case(cpu::unpack_int4(a, kRunner).ok(), name, "refused on the CPU");
        const size_t offset = static_cast<size_t>(misaligned);
        a.packed = packed_memory.upload<uint8_t>(packed.data(), packed.size(), offset);
        a.w = w_memory.take<int8_t>(w.size(), offset);
        const Status status = cuda::unpack_int4(a, stream);
        check_case(status.ok(), name, status.what);
        bool intact = false;
        check_case(w_memory.download(&intact) == w, name, "differs");
        check_case(intact, name, "wrote beyond the output");
      }
    }
  }
}

void test_weight_sums() {
  static Arena w_memory, sums_memory;
  uint64_t count = 0;
  for (const int64_t cols :
       {1, 7, 16, 32, 33, 64, 100, 128, 160, 4096, 8192, 11008, 70016, 131072}) {
    for (const int64_t rows : {0, 1, 3, 17, 257}) {
      for (const int bits : {8, 4}) {
        if (bits == 4 && cols % kInt4Block != 0) continue;
        for (const int64_t wanted_group : {0, 32, 16, 64, 128, 24, 1, 4096}) {
          const int64_t group = wanted_group == 0 || cols % wanted_group != 0 ? cols : wanted_group;
          for (const int fill : {0, 1}) {
            for (const int misaligned : {0, 1}) {
              ++count;
              if (quick && (count % 11 != 0 || rows * cols > 1000000)) continue;
              Random random(count);
              std::vector<uint8_t> w(static_cast<size_t>(rows * cols * bits / 8));
              // All -128 (-8) or random: the ends of the range of sums, and everything else.
              for (uint8_t& byte : w) {
                byte = fill ? static_cast<uint8_t>(random.bits()) : bits == 8 ? 0x80 : 0x88;
              }
              std::vector<int32_t> sums(static_cast<size_t>(rows * (cols / group)));
              WeightSumsArguments a;
              a.w = w.data(), a.bits = bits, a.rows = rows, a.cols = cols, a.group_size = group;
              a.sums = sums.data();
              const std::string name = "weight_sums int" + std::to_string(bits) + " " +
                                       std::to_string(rows) + "x" + std::to_string(cols) +
                                       " group " + std::to_string(group) +
                                       (misaligned ? " misaligned" : "");
              check_case(cpu::weight_sums(a, kRunner).ok(), name, "refused on the CPU");
              a.w = w_memory.upload(w.data(), w.size(), static_cast<size_t>(misaligned));
              a.sums = sums_memory.take<int32_t>(sums.size() * 4);
              const Status status = cuda::weight_sums(a, stream);
              check_case(status.ok(), name, status.what);
              bool intact = false;
              const std::vector<uint8_t> got = sums_memory.download(&intact);
              check_case(std::memcmp(got.data(), sums.data(), got.size()) == 0, name, "differs");
              check_case(intact, name, "wrote beyond the sums");
            }
          }
        }
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------
// The arithmetic of csrc/quant/divide.cuh by itself.

__global__ void reciprocal_errors_kernel(unsigned long long* errors) {
  const uint32_t mantissa = blockIdx.x * blockDim.x + threadIdx.x;  // all 2^23
  for (int exponent = -90; exponent < 90; exponent += 3) {
    const float x = __uint_as_float(static_cast<uint32_t>(exponent + 127) << 23 | mantissa);
    if (cuda::rounded_reciprocal(x) != __frcp_rn(x)) atomicAdd(errors, 1ull);
  }
}

__device__ uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// Divisors of every kind; x within a few units in the last place of where the rounded quotient
// passes from one integer to the next, or anywhere. `mask` keeps bits of x: those of bf16, say.
__global__ void quotient_errors_kernel(int rounds, uint32_t mask, unsigned long long* errors) {
  uint64_t seed = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (int i = 0; i < rounds; ++i) {
    const uint64_t r = mix(seed * 1000003 + i), r2 = mix(r);
    const int exponent = static_cast<int>(r % 180) - 90;
    const float divisor =
        __uint_as_float(static_cast<uint32_t>(exponent + 127) << 23 | ((r >> 32) & 0x7FFFFF));
    const float reciprocal = cuda::rounded_reciprocal(divisor);
    const float target = static_cast<float>(static_cast<int>(r2 % 600) - 300) + 0.5f;
    float x = __fmul_rn(target, divisor);
    if (r2 >> 63) {
      x = __uint_as_float(__float_as_uint(x) + static_cast<int>((r2 >> 20) % 9) - 4);
    } else {
      x = __uint_as_float(__float_as_uint(x) ^ ((r2 >> 20) & 0x3FFFFF));
    }
    x = __uint_as_float(__float_as_uint(x) & mask);
    const float want = rintf(__fdiv_rn(x, divisor));
    const float got = cuda::rounded_quotient(x, divisor, reciprocal) - cuda::kIntegerBias;
    if (fabsf(want) < 4e6f && got != want) atomicAdd(errors, 1ull);
  }
}

void test_division() {
  unsigned long long* errors = nullptr;
  unsigned long long count = 0;
  CUDA_OK(cudaMalloc(&errors, sizeof(*errors)));
  const auto run = [&](auto launch) {
    CUDA_OK(cudaMemsetAsync(errors, 0, sizeof(*errors), stream));
    launch();
    CUDA_OK(cudaGetLastError());
    CUDA_OK(cudaMemcpyAsync(&count, errors, sizeof(count), cudaMemcpyDeviceToHost, stream));
    CUDA_OK(cudaStreamSynchronize(stream));
    return count;
  };
  CHECK_EQ(run([&] { reciprocal_errors_kernel<<<(1 << 23) / 256, 256, 0, stream>>>(errors); }),
           0ull);
  const int rounds = quick ? 4 : 256;
  for (const uint32_t mask : {0xFFFFFFFFu, 0xFFFF0000u, 0xFFFFE000u}) {
    CHECK_EQ(
        run([&] { quotient_errors_kernel<<<1 << 14, 256, 0, stream>>>(rounds, mask, errors); }),
        0ull);
  }
  CUDA_OK(cudaFree(errors));
}

// ---------------------------------------------------------------------------------------------
// More than 2^31 values, and graph capture.

__global__ void fill_bf16_kernel(uint16_t* x, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    const uint64_t r = mix(static_cast<uint64_t>(i));
    x[i] =
        static_cast<uint16_t>((r & 0x80FF) | ((100 + (r >> 32) % 20) << 7));  // about 2^-27 .. 2^-7
  }
}

void test_large() {
  const int64_t rows = 70001, cols = 32768, count = rows * cols;  // 2.29e9
  size_t free_bytes = 0, total_bytes = 0;
  CUDA_OK(cudaMemGetInfo(&free_bytes, &total_bytes));
  if (quick || free_bytes < static_cast<size_t>(count) * 4 + (size_t{1} << 28)) {
    std::printf("more than 2^31 values: left out (%s)\n",
                quick ? "quick" : "not enough device memory");
    return;
  }
  uint16_t *x = nullptr, *out = nullptr;
  int8_t* q = nullptr;
  float* scale = nullptr;
  int32_t* sums = nullptr;
  void* work = nullptr;
  CUDA_OK(cudaMalloc(&x, count * 2));
  CUDA_OK(cudaMalloc(&q, count));
  CUDA_OK(cudaMalloc(&scale, rows * 4));
  CUDA_OK(cudaMalloc(&sums, rows * 4));
  fill_bf16_kernel<<<4096, 256, 0, stream>>>(x, count);
  CUDA_OK(cudaGetLastError());
  // Rows before and after the 2^31st value and the last ones.
  const int64_t boundary = (int64_t{1} << 31) / cols;
  const int64_t places[] = {0, boundary - 1, boundary, boundary + 1, rows - 2};
  const int64_t kept = 2;  // rows compared at each place

  const auto compare = [&](QuantizeArguments a, const char* what) {
    for (const int64_t place : places) {
      std::vector<uint16_t> part(static_cast<size_t>(kept * cols));
      std::vector<int8_t> want(part.size()), got(part.size());
      std::vector<float> want_scale(kept), got_scale(kept);
      CUDA_OK(cudaMemcpy(part.data(), x + place * cols, part.size() * 2, cudaMemcpyDeviceToHost));
      CUDA_OK(cudaMemcpy(got.data(), q + place * cols, got.size(), cudaMemcpyDeviceToHost));
      const bool one = a.per_tensor;
      CUDA_OK(cudaMemcpy(got_scale.data(), one ? scale : scale + place, (one ? 1 : kept) * 4,
                         cudaMemcpyDeviceToHost));
      QuantizeArguments host = a;
      host.x = part.data(), host.rows = kept, host.q = want.data(), host.scale = want_scale.data();
      // The whole tensor's scale is known only there: given to the CPU, its integers must agree.
      if (one) host.scale_in = {got_scale.data(), DType::kFloat32, 0};
      CHECK(cpu::quantize(host, kRunner).ok());
      check_case(want == got, what, "q differs");
      check_case(want_scale[0] == got_scale[0] && (one || want_scale[1] == got_scale[1]), what,
                 "scale differs");
    }
  };
  QuantizeArguments a;
  a.x = x, a.x_dtype = DType::kBFloat16;
  a.rows = rows, a.cols = cols, a.x_stride = cols, a.group_size = cols;
  a.q = q, a.scale = scale;
  CHECK(cuda::quantize(a, nullptr, stream).ok());
  CUDA_OK(cudaStreamSynchronize(stream));
  compare(a, "quantize more than 2^31 values per row");

  WeightSumsArguments s;
  s.w = q, s.rows = rows, s.cols = cols, s.group_size = cols, s.sums = sums;
  CHECK(cuda::weight_sums(s, stream).ok());
  CUDA_OK(cudaStreamSynchronize(stream));
  for (const int64_t place : places) {
    std::vector<int8_t> part(static_cast<size_t>(cols));
    int32_t got = 0, want = 0;
    CUDA_OK(cudaMemcpy(part.data(), q + place * cols, part.size(), cudaMemcpyDeviceToHost));
    CUDA_OK(cudaMemcpy(&got, sums + place, 4, cudaMemcpyDeviceToHost));
    for (const int8_t value : part) want += value;
    CHECK_EQ(got, want);
  }

  CUDA_OK(cudaMalloc(&work, 1 << 16));
  a.per_tensor = true;
  CHECK(cuda::quantize_workspace_bytes(a) <= (1 << 16));
  CHECK(cuda::quantize(a, work, stream).ok());
  CUDA_OK(cudaStreamSynchronize(stream));
  compare(a, "quantize more than 2^31 values per tensor");

  // Back again, over x.
  out = x;
  DequantizeArguments d;
  d.q = q, d.rows = rows, d.cols = cols, d.group_size = cols;
  d.scale = {scale, DType::kFloat32, 0};
  d.out = out, d.out_dtype = DType::kBFloat16;
  CHECK(cuda::dequantize(d, stream).ok());
  CUDA_OK(cudaStreamSynchronize(stream));
  for (const int64_t place : places) {
    std::vector<int8_t> part(static_cast<size_t>(cols));
    std::vector<uint16_t> got(part.size()), want(part.size());
    float one = 0;
    CUDA_OK(cudaMemcpy(part.data(), q + place * cols, part.size(), cudaMemcpyDeviceToHost));
    CUDA_OK(cudaMemcpy(got.data(), out + place * cols, got.size() * 2, cudaMemcpyDeviceToHost));
    CUDA_OK(cudaMemcpy(&one, scale, 4, cudaMemcpyDeviceToHost));
    DequantizeArguments host = d;
    host.q = part.data(), host.rows = 1, host.out = want.data(), host.scale.data = &one;
    CHECK(cpu::dequantize(host, kRunner).ok());
    check_case(want == got, "dequantize more than 2^31 values", "differs");
  }
  for (void* memory : {static_cast<void*>(x), static_cast<void*>(q), static_cast<void*>(scale),
                       static_cast<void*>(sums), work}) {
    CUDA_OK(cudaFree(memory));
  }
}

// Whatever allocates or synchronises cannot be captured; a replay must do the work again.
void test_capture() {
  const int64_t rows = 5, cols = 256;
  // Moderate values of one sign mostly: no row's sum is 0, which is what a replay that did nothing
  // would leave.
  std::vector<uint8_t> x(static_cast<size_t>(rows * cols) * 2);
  for (int64_t i = 0; i < rows * cols; ++i) {
    store(x, i, static_cast<float>(i % 37) - 11.f, DType::kBFloat16);
  }
  static Arena x_memory, q_memory, scale_memory, zero_memory, work_memory, w_memory, sums_memory;
  QuantizeArguments a;
  a.x = x_memory.upload(x.data(), x.size());
  a.x_dtype = DType::kBFloat16;
  a.rows = rows, a.cols = cols, a.x_stride = cols, a.group_size = cols, a.bits = 4;
  a.symmetric = false, a.per_tensor = true;
  a.q = q_memory.take(rows * cols / 2);
  a.scale = scale_memory.take<float>(4);
  a.zero = zero_memory.take<int32_t>(4);
  void* work = work_memory.take(cuda::quantize_workspace_bytes(a));
  UnpackArguments u;
  u.packed = static_cast<const uint8_t*>(a.q), u.rows = rows, u.cols = cols;
  u.w = w_memory.take<int8_t>(rows * cols);
  WeightSumsArguments s;
  s.w = a.q, s.bits = 4, s.rows = rows, s.cols = cols, s.group_size = cols;
  s.sums = sums_memory.take<int32_t>(rows * 4);
  CUDA_OK(cudaStreamSynchronize(stream));

  cudaGraph_t graph;
  cudaGraphExec_t executable;
  CUDA_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  CHECK(cuda::quantize(a, work, stream).ok());
  CHECK(cuda::unpack_int4(u, stream).ok());
  CHECK(cuda::weight_sums(s, stream).ok());
  CUDA_OK(cudaStreamEndCapture(stream, &graph));
  CUDA_OK(cudaGraphInstantiate(&executable, graph, 0));
  for (int replay = 0; replay < 2; ++replay) {
    CUDA_OK(cudaMemsetAsync(a.q, 0, rows * cols / 2, stream));
    CUDA_OK(cudaGraphLaunch(executable, stream));
    bool intact = false;
    const std::vector<uint8_t> w = w_memory.download(&intact), sums = sums_memory.download(&intact);
    for (int64_t r = 0; r < rows; ++r) {
      int32_t got = 0, want = 0;
      std::memcpy(&got, sums.data() + 4 * r, 4);
      for (int64_t k = 0; k < cols; ++k)
        want += static_cast<int8_t>(w[static_cast<size_t>(r * cols + k)]);
      CHECK_EQ(got, want);
      CHECK(got != 0);
    }
  }
  CUDA_OK(cudaGraphExecDestroy(executable));
  CUDA_OK(cudaGraphDestroy(graph));
}

void test_device_info() {
  DeviceInfo info, again;
  CHECK(query_device(0, &info).ok());
  CHECK(query_device(0, &again).ok());
  cudaDeviceProp properties;
  CUDA_OK(cudaGetDeviceProperties(&properties, 0));
  CHECK_EQ(info.sm, 10 * properties.major + properties.minor);
  CHECK_EQ(info.sm_count, properties.multiProcessorCount);
  CHECK_EQ(info.smem_per_block, static_cast<int>(properties.sharedMemPerBlockOptin));
  CHECK_EQ(info.smem_per_sm, static_cast<int>(properties.sharedMemPerMultiprocessor));
  CHECK_EQ(info.l2_bytes, static_cast<int64_t>(properties.l2CacheSize));
  CHECK_EQ(again.sm, info.sm);
  CHECK(info.bandwidth == 0 || (info.bandwidth > 5e10 && info.bandwidth < 5e13));
  CHECK(!query_device(-1, &info).ok());
  CHECK(query_device(1000, &info).code == StatusCode::kCudaError);
  CHECK(cudaGetLastError() == cudaSuccess);
  std::printf("%s: sm_%d, %d SMs, %.2f TB/s\n", properties.name, info.sm, info.sm_count,
              again.bandwidth / 1e12);
}

}  // namespace
}  // namespace qutlass

int main(int argc, char** argv) {
  using namespace qutlass;
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no CUDA device\n");
    return 77;
  }
  quick = argc > 1 && std::strcmp(argv[1], "quick") == 0;
  CUDA_OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const struct {
    const char* name;
    void (*run)();
  } tests[] = {{"device info", test_device_info},
               {"refusals", test_refusals},
               {"division", test_division},
               {"quantize", test_quantize},
               {"quantize an empty tensor", test_quantize_empty_tensor},
               {"dequantize", test_dequantize},
               {"pack_int4", test_pack},
               {"unpack_int4", test_unpack},
               {"weight_sums", test_weight_sums},
               {"more than 2^31 values", test_large},
               {"graph capture", test_capture}};
  for (const auto& test : tests) {
    std::cout << test.name << std::endl;
    test.run();
    CUDA_OK(cudaDeviceSynchronize());
  }
  return test::finish();
}
