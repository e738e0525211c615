// Where the weights of an ONNX file lie, and their types: what libr1v reads and changes of it, without protobuf's
// library.
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <string_view>

namespace r1v::ort {

// An ONNX file with other locations of its initializers' external data; all else is as it was.
// `renamed`: location -> what it is to be. Throws kBundle, naming `where`: this is no protobuf message.
std::string with_locations(std::string_view model, const std::function<std::string(const std::string&)>& renamed,
                           const std::string& where);

// Element types of an ONNX file's initializers: TensorProto.DataType. Throws kBundle, naming `where`.
std::set<uint64_t> initializer_types(std::string_view model, const std::string& where);

}  // namespace r1v::ort
