// SPDX-License-Identifier: Apache-2.0
//
// Every row of the tile table on the GPU against the CPU's product of the same arguments, with no
// torch in between: bit for bit where the sums are integers, within the contract's bound where they
// are floats; with guard bytes around the output, and twice, which must give the same bits.
#include <cuda_runtime.h>

#include <climits>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "common/device_info.h"
#include "common/nibble.h"
#include "cpu/gemm.h"
#include "gemm/gemm.h"
#include "gemm/schedule.h"
#include "gemm/tiles.h"
#include "threads.h"

namespace qutlass {
namespace {

void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}
#define CUDA_OK(call) require((call), #call)

constexpr size_t kGuard = 512;
constexpr unsigned char kPattern = 0xA5;

// Bytes on both sides: `host` for the CPU, `device` for the GPU.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::vector<unsigned char> bytes) : host_(std::move(bytes)) {
    CUDA_OK(cudaMalloc(&device_, host_.size()));
    CUDA_OK(cudaMemcpy(device_, host_.data(), host_.size(), cudaMemcpyHostToDevice));
  }
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(host_, other.host_);
    std::swap(device_, other.device_);
    return *this;
  }
  ~Buffer() { cudaFree(device_); }
  const void* host() const { return host_.empty() ? nullptr : host_.data(); }
  const void* device() const { return device_; }

 private:
  std::vector<unsigned char> host_;
  void* device_ = nullptr;
};

struct Case {
  int64_t M, N, K, group;
  bool a_zero, b_zero, bias;
};

template <typename T>
std::vector<unsigned char> bytes_of(const std::vector<T>& values) {
  std::vector<unsigned char> bytes(values.size() * sizeof(T));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

float to_float(uint16_t bf16) {
  const uint32_t bits = static_cast<uint32_t>(bf16) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// The arguments of one product, for either side.
struct Product {
  GemmArguments host, device;
  std::vector<Buffer> buffers;

  void set(Param GemmArguments::* member, DType dtype, int64_t stride, Buffer buffer) {
    host.*member = {buffer.host(), dtype, stride};
    device.*member = {buffer.device(), dtype, stride};
    buffers.push_back(std::move(buffer));
  }
};

Product make(GemmOp op, const Case& c, std::mt19937& random) {
  const auto integer = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  const auto scales = [&](int64_t count) {
    std::vector<float> values(count);
    for (float& x : values) x = std::uniform_real_distribution<float>(0.001f, 0.01f)(random);
    return Buffer(bytes_of(values));
  };
  const auto integers = [&](int64_t count, int low, int high) {
    std::vector<int32_t> values(count);
    for (int32_t& x : values) x = integer(low, high);
    return Buffer(bytes_of(values));
  };
  const auto raw = [&](int64_t count) {
    std::vector<unsigned char> values(count);
    for (unsigned char& x : values) x = static_cast<unsigned char>(integer(0, 255));
    return values;
  };

  Product p;
  const int64_t G = c.K / c.group;
  const bool grouped = is_grouped(op);
  GemmArguments g;
  g.op = op, g.M = c.M, g.N = c.N, g.K = c.K, g.group_size = c.group;
  g.lda = c.K * a_bits(op) / 8;
  p.host = p.device = g;

  std::vector<unsigned char> a = raw(c.M * g.lda);
  if (op == GemmOp::kW4A16) {  // bfloat16 of [1, 2) and its negatives, not of every exponent
    for (size_t i = 1; i < a.size(); i += 2) a[i] = (a[i] & 0x80) | 0x3F, a[i - 1] |= 0x80;
  }
  Buffer a_buffer(std::move(a)), b_buffer(raw(c.N * c.K * b_bits(op) / 8));
  p.host.a = a_buffer.host(), p.device.a = a_buffer.device();
  p.host.b = b_buffer.host(), p.device.b = b_buffer.device();
  p.buffers.push_back(std::move(a_buffer));
  p.buffers.push_back(std::move(b_buffer));

  const bool group_scales = op == GemmOp::kW4A16 || op == GemmOp::kW4A8Group;
  if (op != GemmOp::kW4A16) p.set(&GemmArguments::a_scale, DType::kFloat32, 1, scales(c.M));
  p.set(&GemmArguments::b_scale, DType::kFloat32, group_scales ? G : 1,
        scales(group_scales ? c.N * G : c.N));
  if (op == GemmOp::kW4A8Multiplier) {
    std::vector<unsigned char> m(c.N * G);
    for (unsigned char& x : m) x = static_cast<unsigned char>(integer(1, c.b_zero ? 8 : 15));
    Buffer buffer(std::move(m));
    p.host.b_multiplier = static_cast<const uint8_t*>(buffer.host());
    p.device.b_multiplier = static_cast<const uint8_t*>(buffer.device());
    p.buffers.push_back(std::move(buffer));
  }
  if (c.b_zero) {
    if (op == GemmOp::kW4A8Multiplier) {
      std::vector<unsigned char> zeros(c.N * G);
      for (unsigned char& x : zeros) x = static_cast<unsigned char>(integer(-8, 8));
      p.set(&GemmArguments::b_zero, DType::kInt8, G, Buffer(std::move(zeros)));
    } else {
      const int reach = op == GemmOp::kW8A8 ? 100 : 8;
      p.set(&GemmArguments::b_zero, DType::kInt32, grouped ? G : 1,
            integers(grouped ? c.N * G : c.N, -reach, reach - 1));
    }
  }
  if (c.a_zero && op != GemmOp::kW4A16) {
    const int reach = op == GemmOp::kW4A4 ? 8 : 100;
    p.set(&GemmArguments::a_zero, DType::kInt32, 1, integers(c.M, -reach, reach - 1));
    const auto* b = static_cast<const unsigned char*>(p.host.b);
    std::vector<int32_t> sums(grouped ? c.N * G : c.N, 0);
    for (int64_t n = 0; n < c.N; ++n) {
      for (int64_t k = 0; k < c.K; ++k) {
        const int value =
            b_bits(op) == 8 ? static_cast<int8_t>(b[n * c.K + k]) : int4_at(b + n * c.K / 2, k);
        sums[grouped ? n * G + k / c.group : n] += value;
      }
    }
    p.set(&GemmArguments::b_sum, DType::kInt32, grouped ? G : 1, Buffer(bytes_of(sums)));
  }
  if (c.bias) p.set(&GemmArguments::bias, DType::kFloat32, 1, scales(c.N));
  return p;
}

void check_row(int tile, int split_k, const Case& c, const DeviceInfo& info, std::mt19937& random) {
  const GemmTile& t = gemm_tile(tile);
  const GemmConfig config{tile, split_k};
  if (!gemm_config_legal({t.op, c.M, c.N, c.K, c.group}, config, info)) return;
  const std::string where = std::string(t.name) + " x" + std::to_string(split_k) + " at " +
                            std::to_string(c.M) + " " + std::to_string(c.N) + " " +
                            std::to_string(c.K) + " group " + std::to_string(c.group) +
                            (c.a_zero ? " a_zero" : "") + (c.b_zero ? " b_zero" : "");
  Product p = make(t.op, c, random);
  const size_t count = static_cast<size_t>(c.M * c.N);
  std::vector<uint16_t> want(count), got(count), again(count);
  p.host.out = want.data();
  CHECK(cpu::gemm(p.host, test::kThreaded).ok());

  std::vector<unsigned char> around(count * 2 + 2 * kGuard, kPattern);
  unsigned char* memory = nullptr;
  CUDA_OK(cudaMalloc(&memory, around.size()));
  p.device.out = memory + kGuard;
  void* workspace = nullptr;
  const size_t scratch = gemm_workspace_bytes(p.device, config);
  if (scratch) CUDA_OK(cudaMalloc(&workspace, scratch));
  for (std::vector<uint16_t>* result : {&got, &again}) {
    CUDA_OK(cudaMemset(memory, kPattern, around.size()));
    const Status status = gemm_launch(p.device, config, info, workspace, nullptr);
    CHECK_EQ_AT(status.ok(), true, where << ": " << status.what);
    CUDA_OK(cudaDeviceSynchronize());
    CUDA_OK(cudaMemcpy(around.data(), memory, around.size(), cudaMemcpyDeviceToHost));
    std::memcpy(result->data(), around.data() + kGuard, count * 2);
    size_t touched = 0;
    for (size_t i = 0; i < kGuard; ++i) {
      touched += around[i] != kPattern;
      touched += around[around.size() - 1 - i] != kPattern;
    }
    CHECK_EQ_AT(touched, size_t{0}, where);
  }
  CHECK_EQ_AT(got == again, true, where << ": twice");
  if (t.op == GemmOp::kW4A16 || t.op == GemmOp::kW4A8Group) {
    double error = 0, norm = 0;
    for (size_t i = 0; i < count; ++i) {
      const double w = to_float(want[i]), d = to_float(got[i]) - w;
      error += d * d, norm += w * w;
    }
    // Both sides round to bfloat16; each alone stays within 3e-3 of the exact product.
    CHECK_EQ_AT(std::sqrt(error / norm) <= 4e-3, true, where << ": " << std::sqrt(error / norm));
  } else {
    CHECK_EQ_AT(got == want, true, where);
  }
  CUDA_OK(cudaFree(memory));
  CUDA_OK(cudaFree(workspace));
}

int run(bool quick) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no CUDA device: skipped\n");
    return 77;
  }
  DeviceInfo info;
  if (!query_device(0, &info).ok()) return 1;
  std::mt19937 random(7);
  for (int i = 0; i < gemm_tile_count(); ++i) {
    const GemmTile& t = gemm_tile(i);
    for (int64_t group : {32, 64, 128, 0}) {
      if (!is_grouped(t.op) && group) continue;
      if (!group && (t.op == GemmOp::kW4A8Group || t.op == GemmOp::kW4A8Multiplier)) continue;
      const int64_t K = 5 * 128 + (group == 128 || is_grouped(t.op) ? 128 : 32);
      const int64_t g = group ? group : K;
      for (int split_k : {1, 2, 3, kStreamK}) {
        check_row(i, split_k, {t.m + 1, t.n + 5, K, g, true, true, true}, info, random);
        if (quick) continue;
        check_row(i, split_k, {1, t.n - 1, K, g, false, false, false}, info, random);
        check_row(i, split_k, {t.m - 1, 3, K, g, true, false, true}, info, random);
        check_row(i, split_k, {t.m, 2 * t.n, K, g, false, true, false}, info, random);
        // More tiles than run at once: whole and shared ones in one block.
        if (split_k == kStreamK && g == (is_grouped(t.op) ? 128 : K)) {
          const int64_t columns = (2 * info.sm_count + 9) * t.n + 8;
          check_row(i, split_k,
                    {t.m / 2, columns, 256, is_grouped(t.op) ? g : 256, true, false, false}, info,
                    random);
        }
      }
    }
  }
  // Many groups, which are put in place as the products go on: a number that threads can read by
  // four, by two, and one at a time.
  for (int i = 0; i < gemm_tile_count() && !quick; ++i) {
    const GemmTile& t = gemm_tile(i);
    if (!is_grouped(t.op)) continue;
    for (int64_t groups : {36, 34, 33}) {
      for (int64_t group : {64, 128}) {
        for (int split_k : {1, 3, kStreamK}) {
          for (bool zeros : {false, true}) {
            check_row(i, split_k, {17, t.n + 5, groups * group, group, zeros, zeros, false}, info,
                      random);
          }
        }
      }
    }
  }
  // Blocks with several tiles, each shorter than the stages are deep: copies run segments ahead.
  for (int i = 0; i < gemm_tile_count(); ++i) {
    const GemmTile& t = gemm_tile(i);
    // Those whose copies of the weight are a segment ahead of the others even when checks are slow.
    if (quick && !is_staged(t.op, t.m)) continue;
    const int64_t columns = (4 * info.sm_count + 9) * t.n + 8;
    for (int k_tiles : {1, 2, 3}) {
      const int64_t K = k_tiles * t.k;
      // One group, or several where there have to be.
      const bool several = t.op == GemmOp::kW4A8Group || t.op == GemmOp::kW4A8Multiplier;
      for (int split_k : {1, kStreamK}) {
        check_row(i, split_k, {17, columns, K, several ? 64 : K, false, true, true}, info, random);
      }
    }
  }
  return test::finish();
}

}  // namespace
}  // namespace qutlass

int main(int argc, char** argv) { return qutlass::run(argc > 1 && !std::strcmp(argv[1], "quick")); }
