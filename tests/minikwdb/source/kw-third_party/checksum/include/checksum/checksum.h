#pragma once

#include <cstddef>
#include <cstdint>

namespace checksum {

/// CRC-32C (Castagnoli) of `size` bytes; protects each record in a block file or a log.
uint32_t Crc32c(const void* data, size_t size);

/// FNV-1a, 64 bit; decides which vgroup owns a device, so it must never change.
uint64_t Fnv1a64(const void* data, size_t size);

}  // namespace checksum
