#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

#include "kwdbts2/ts_value.h"

namespace kwdbts {

struct Bytes {
  std::string data;
};
using Value = std::variant<std::monostate, int64_t, double, std::string, Bytes>;
using Row = std::vector<Value>;

class Corruption : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Appends fixed-width numbers and length-prefixed strings to a record.
class Writer {
 public:
  template <typename T>
  void Put(T value) {
    out_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void PutText(const std::string& text) {
    Put<uint32_t>(static_cast<uint32_t>(text.size()));
    out_ += text;
  }
  void PutRow(const Row& row) {
    Put<uint32_t>(static_cast<uint32_t>(row.size()));
    for (const Value& value : row) {
      Put<uint8_t>(static_cast<uint8_t>(value.index()));
      if (const auto* i = std::get_if<int64_t>(&value)) Put(*i);
      if (const auto* d = std::get_if<double>(&value)) Put(*d);
      if (const auto* s = std::get_if<std::string>(&value)) PutText(*s);
      if (const auto* b = std::get_if<Bytes>(&value)) PutText(b->data);
    }
  }
  const std::string& str() const { return out_; }

 private:
  std::string out_;
};

/// Reads what Writer wrote; throws Corruption instead of reading past the end.
class Reader {
 public:
  Reader(const char* data, size_t size) : at_(data), end_(data + size) {}

  template <typename T>
  T Get() {
    if (static_cast<size_t>(end_ - at_) < sizeof(T)) throw Corruption("record ends too early");
    T value;
    std::memcpy(&value, at_, sizeof value);
    at_ += sizeof value;
    return value;
  }
  std::string GetText() {
    const auto size = Get<uint32_t>();
    if (static_cast<size_t>(end_ - at_) < size) throw Corruption("text ends too early");
    std::string text(at_, size);
    at_ += size;
    return text;
  }
  Row GetRow() {
    Row row(Get<uint32_t>());
    for (Value& value : row) {
      switch (Get<uint8_t>()) {
        case 0: break;
        case 1: value = Get<int64_t>(); break;
        case 2: value = Get<double>(); break;
        case 3: value = GetText(); break;
        case 4: value = Bytes{GetText()}; break;
        default: throw Corruption("unknown kind of value");
      }
    }
    return row;
  }
  bool done() const { return at_ == end_; }
  size_t left() const { return static_cast<size_t>(end_ - at_); }

 private:
  const char* at_;
  const char* end_;
};

}  // namespace kwdbts
