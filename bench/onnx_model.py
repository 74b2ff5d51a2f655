"""ONNX models of one node in the wire format of protocol buffers, so that the `onnx` package is not needed.

Field numbers: onnx.proto3 (ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto, ValueInfoProto).
"""

FLOAT32, INT32, INT64, FLOAT16 = 1, 6, 7, 10
_INT_ATTRIBUTE = 2


def _varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


def _number(field, value):
    return _varint(field << 3) + _varint(value)


def _block(field, content):
    content = content.encode() if isinstance(content, str) else content
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _value_info(name, element_type, dimensions):
    shape = b"".join(_block(1, _block(2, d) if isinstance(d, str) else _number(1, d)) for d in dimensions)
    return _block(1, name) + _block(2, _block(1, _number(1, element_type) + _block(2, shape)))


def one_node(operator, inputs, outputs, *, attributes=None, constants=None, domain="", opset=17):
    """The bytes of a model.

    inputs, outputs: {name: (element type, dimensions)} in the operator's order; a dimension is a number or a name; an input that
      is left out is None. attributes: {name: int}. constants: {name: [int64]}, inputs whose value is in the model.
    """
    constants = constants or {}
    node = b"".join(_block(1, name if value is not None else "") for name, value in inputs.items())
    node += b"".join(_block(2, name) for name in outputs) + _block(4, operator) + _block(7, domain)
    for name, value in (attributes or {}).items():
        node += _block(5, _block(1, name) + _number(3, value) + _number(20, _INT_ATTRIBUTE))
    graph = _block(1, node) + _block(2, operator)
    for name, values in constants.items():
        data = b"".join(value.to_bytes(8, "little") for value in values)
        graph += _block(5, _number(1, len(values)) + _number(2, INT64) + _block(8, name) + _block(9, data))
    graph += b"".join(_block(11, _value_info(name, *value)) for name, value in inputs.items() if value and name not in constants)
    graph += b"".join(_block(12, _value_info(name, *value)) for name, value in outputs.items())
    imports = _block(8, _block(1, "") + _number(2, opset))
    if domain:
        imports += _block(8, _block(1, domain) + _number(2, 1))
    return _number(1, 8) + _block(7, graph) + imports
