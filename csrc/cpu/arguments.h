// Positional arguments of a Python function as C++ values: numbers, addresses of tensors, capsules.
#pragma once
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstdint>

#include "kernels.h"

namespace openglm {

// Reads the next positional argument; after a failure (a Python error is set) everything reads as zero.
class Arguments {
public:
    Arguments(PyObject* const* items, Py_ssize_t count, Py_ssize_t expected) : items_(items) {
        if (count != expected) fail("wrong number of arguments");
    }
    long long integer() { return failed_ ? 0 : checked(PyLong_AsLongLong(items_[at_++])); }
    int number() { return static_cast<int>(integer()); }
    float real() { return failed_ ? 0.0f : static_cast<float>(checked(PyFloat_AsDouble(items_[at_++]))); }
    DType dtype() { return static_cast<DType>(number()); }
    template <class T>
    T* address() {
        return reinterpret_cast<T*>(static_cast<intptr_t>(integer()));
    }
    template <class T>
    T* capsule(const char* name) {
        if (failed_) return nullptr;
        auto* p = static_cast<T*>(PyCapsule_GetPointer(items_[at_++], name));
        if (!p) failed_ = true;
        return p;
    }
    PyObject* object() { return failed_ ? nullptr : items_[at_++]; }
    bool failed() const { return failed_; }
    void fail(const char* why) {
        if (!failed_) PyErr_SetString(PyExc_TypeError, why);
        failed_ = true;
    }

private:
    template <class T>
    T checked(T value) {
        if (value == T(-1) && PyErr_Occurred()) failed_ = true;
        return value;
    }
    PyObject* const* items_;
    Py_ssize_t at_ = 0;
    bool failed_ = false;
};

}  // namespace openglm
