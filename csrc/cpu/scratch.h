// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

namespace qutlass::cpu {

// A cache-line-aligned array that is not initialised. Nothing throws: ok() says whether the memory
// was there.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : data_(count > 0
                  ? static_cast<T*>(::operator new(static_cast<size_t>(count) * sizeof(T),
                                                   std::align_val_t{kAlignment}, std::nothrow))
                  : nullptr),
        ok_(count <= 0 || data_ != nullptr) {}
  ~Scratch() { ::operator delete(data_, std::align_val_t{kAlignment}); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  bool ok() const { return ok_; }
  T* get() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  static constexpr size_t kAlignment = 64;
  T* data_;
  bool ok_;
};

}  // namespace qutlass::cpu
