// SPDX-License-Identifier: Apache-2.0
// Compiled where the build has CUDA. The CUDA runtime is linked statically, beside the one that
// torch brings: both reach the same driver and therefore share each device's primary context, its
// streams and its memory, and which version of the runtime torch carries does not matter.
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <limits>
#include <mutex>
#include <set>
#include <tuple>

#include "common/cards.h"
#include "gemm/tuned.h"
#include "torch/backend.h"

namespace qutlass::binding {
namespace {

using GetCurrentStream = AOTITorchError (*)(int32_t device, void** stream);

// The device-independent way to a stream's native handle exists from torch 2.13 on. This function
// is older, but lives in libtorch_cuda.so, which a CPU-only torch does not have: importing it would
// tie the library to CUDA builds of torch. A CUDA tensor can only come from a process that has
// loaded that library, so it is found there when the first one arrives.
GetCurrentStream find_current_stream() {
  void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
  if (!library) return nullptr;
  return reinterpret_cast<GetCurrentStream>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
}

void* current_stream(const char* op, int32_t device) {
  static const GetCurrentStream get = find_current_stream();
  void* stream = nullptr;
  if (!get || get(device, &stream) != TORCH_SUCCESS) {
    throw std::runtime_error(std::string(op) +
                             ": torch's current CUDA stream could not be had; is this torch a CUDA "
                             "build with libtorch_cuda.so?");
  }
  return stream;
}

void raise_if_failed(const char* op, cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string(op) + ": " + what + ": " + cudaGetErrorString(error));
}

// A choice, and whether it was measured on this GPU (see gemm/tuned.h) instead of estimated.
struct Selected {
  GemmConfig config;
  bool tuned = false;
};

// QUTLASS_PRINT_TILE=1: each choice once, on stderr.
void print_choice(const GemmArguments& args, const Selected& selected, const DeviceInfo& info) {
  const GemmConfig& config = selected.config;
  static std::mutex mutex;
  static std::set<std::tuple<int, int64_t, int64_t, int64_t, int64_t, int, int, int>> printed;
  const std::lock_guard<std::mutex> lock(mutex);
  if (!printed
           .emplace(static_cast<int>(args.op), args.M, args.N, args.K, args.group_size, info.sm,
                    config.tile, config.split_k)
           .second) {
    return;
  }
  const GemmTile& tile = gemm_tile(config.tile);
  std::fprintf(stderr, "qutlass: %s M=%lld N=%lld K=%lld group=%lld sm_%d: %s split_k=%d %s%s\n",
               name_of(args.op), static_cast<long long>(args.M), static_cast<long long>(args.N),
               static_cast<long long>(args.K), static_cast<long long>(args.group_size), info.sm,
               tile.name, config.split_k, tile.instruction, selected.tuned ? " tuned" : "");
}

bool prints_choices() {
  static const bool prints = [] {
    const char* value = std::getenv("QUTLASS_PRINT_TILE");
    return value && *value && std::string(value) != "0";
  }();
  return prints;
}

// The tuned choice or gemm_select's, remembered: the latter weighs every row of the table, 8 us on
// an EPYC core where a whole call through torch.ops without it takes 3. A model asks for the same
// few dozen problems over and over; each thread keeps its own answers, so that nothing is locked.
// An answer from before the tuned choices last changed is asked for again.
Selected select_cached(const GemmProblem& problem, int32_t device, const DeviceInfo& info) {
  struct Answer {
    GemmProblem problem;
    int32_t device = -1;
    uint64_t generation = 0;
    Selected selected;
  };
  constexpr size_t kAnswers = 64;
  thread_local Answer answers[kAnswers];
  uint64_t hash = static_cast<uint64_t>(problem.op) + 8 * static_cast<uint64_t>(device);
  for (int64_t part : {problem.M, problem.N, problem.K, problem.group_size}) {
    hash = (hash ^ static_cast<uint64_t>(part)) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 32;
  }
  Answer& answer = answers[hash % kAnswers];
  const GemmProblem& known = answer.problem;
  const uint64_t generation = tuned_generation();
  if (answer.device != device || answer.generation != generation || known.op != problem.op ||
      known.M != problem.M || known.N != problem.N || known.K != problem.K ||
      known.group_size != problem.group_size) {
    // What was measured is of the GPU that is there, not of an assumed card.
    GemmConfig config;
    if (!assumption().card) config = find_tuned(problem, device, info);
    const bool tuned = config.tile >= 0;
    if (!tuned) config = gemm_select(problem, info);
    answer = {problem, device, generation, {config, tuned}};
  }
  return answer.selected;
}

}  // namespace

void raise_if_failed(const char* op, const Status& status) {
  if (status.ok()) return;
  if (status.code == StatusCode::kCudaError) {
    raise_if_failed(op, static_cast<cudaError_t>(status.cuda_error), status.what);
  }
  throw std::runtime_error(std::string(op) + ": " + status.what);
}

// torch's guard sets the device in torch's runtime, which makes that device's primary context the
// thread's current one in the driver; the static runtime here works on whatever context is current.
// So torch alone decides what the current device is, and no device is ever set through the runtime
// of this library, whose own notion torch would not see.
CudaBackend::CudaBackend(const char* op, const TensorView& on) : op_(op), on_(on) {
  int32_t current = -1;
  QUTLASS_CHECK_TORCH(aoti_torch_get_current_device_index(&current));
  stream_ = current_stream(op, on.device_index);
  if (current != on.device_index) {
    QUTLASS_CHECK_TORCH(aoti_torch_create_device_guard(on.device_index, &guard_));
  }
}

CudaBackend::~CudaBackend() {
  if (guard_) aoti_torch_delete_device_guard(guard_);
}

// From torch's caching allocator, which reuses memory in stream order: freeing it on return is safe
// although the kernel still runs, and a graph capture keeps it in the graph's own pool.
OwnedTensor CudaBackend::scratch(size_t bytes) const {
  if (bytes == 0) return OwnedTensor();
  return empty(Shape().add(static_cast<int64_t>(bytes)), DType::kUInt8, on_);
}

bool CudaBackend::pack_int4(PackArguments args, int64_t* bad_index, int64_t* bad_value) const {
  const auto stream = static_cast<cudaStream_t>(stream_);
  const OwnedTensor first_bad = empty(Shape().add(1), DType::kInt64, on_);
  args.first_bad = static_cast<int64_t*>(data_of(first_bad));
  raise_if_failed(op_, cuda::pack_int4(args, stream_));
  // A capture cannot be read back from: there the values are saturated and nobody is told.
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  raise_if_failed(op_, cudaStreamIsCapturing(stream, &capture), "cudaStreamIsCapturing");
  if (capture != cudaStreamCaptureStatusNone) return false;
  const auto read = [&](void* to, const void* from, size_t bytes) {
    raise_if_failed(op_, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream),
                    "reading the first value out of range");
    raise_if_failed(op_, cudaStreamSynchronize(stream), "reading the first value out of range");
  };
  read(bad_index, args.first_bad, sizeof(*bad_index));
  if (*bad_index == std::numeric_limits<int64_t>::max()) return false;
  const int64_t at = *bad_index / args.cols * args.w_stride + *bad_index % args.cols;
  const size_t bytes = size_of(args.w_dtype);
  uint64_t bits = 0;
  read(&bits, static_cast<const char*>(args.w) + at * bytes, bytes);
  const int unused = 64 - 8 * static_cast<int>(bytes);
  *bad_value = args.w_dtype == DType::kUInt8
                   ? static_cast<int64_t>(bits)
                   : static_cast<int64_t>(bits << unused) >> unused;  // sign-extended
  return true;
}

void CudaBackend::unpack_int4(const UnpackArguments& args) const {
  raise_if_failed(op_, cuda::unpack_int4(args, stream_));
}

void CudaBackend::quantize(const QuantizeArguments& args) const {
  const OwnedTensor workspace = scratch(cuda::quantize_workspace_bytes(args));
  void* memory = workspace.get() ? data_of(workspace) : nullptr;
  raise_if_failed(op_, cuda::quantize(args, memory, stream_));
}

void CudaBackend::dequantize(const DequantizeArguments& args) const {
  raise_if_failed(op_, cuda::dequantize(args, stream_));
}

void CudaBackend::weight_sums(const WeightSumsArguments& args) const {
  raise_if_failed(op_, cuda::weight_sums(args, stream_));
}

// The limits that kernels are chosen by.
DeviceInfo CudaBackend::limits() const {
  DeviceInfo info;
  raise_if_failed(op_, query_device(on_.device_index, &info));
  raise_if_failed(op_, apply_assumption(assumption(), &info));
  return info;
}

void CudaBackend::gemm(const GemmArguments& args) const {
  const DeviceInfo info = limits();
  const GemmProblem problem = {args.op, args.M, args.N, args.K, args.group_size};
  const Selected selected = select_cached(problem, on_.device_index, info);
  const GemmConfig& config = selected.config;
  if (config.tile < 0) {
    throw std::runtime_error(std::string(op_) + ": no kernel runs this problem on sm_" +
                             std::to_string(info.sm));
  }
  if (prints_choices()) print_choice(args, selected, info);
  launch(args, config, info);
}

void CudaBackend::gemm(const GemmArguments& args, const GemmConfig& config) const {
  const DeviceInfo info = limits();
  const GemmProblem problem = {args.op, args.M, args.N, args.K, args.group_size};
  if (config.tile < 0 || config.tile >= gemm_tile_count() ||
      !gemm_config_legal(problem, config, info)) {
    throw std::invalid_argument(std::string(op_) + ": tile " + std::to_string(config.tile) +
                                " with split_k " + std::to_string(config.split_k) +
                                " cannot run this problem on sm_" + std::to_string(info.sm));
  }
  launch(args, config, info);
}

void CudaBackend::launch(const GemmArguments& args, const GemmConfig& config,
                         const DeviceInfo& info) const {
  const OwnedTensor workspace = scratch(gemm_workspace_bytes(args, config));
  void* memory = workspace.get() ? data_of(workspace) : nullptr;
  raise_if_failed(op_, gemm_launch(args, config, info, memory, stream_));
}

}  // namespace qutlass::binding
