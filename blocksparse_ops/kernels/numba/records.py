"""Records in memory: declared once by their fields, read and written as attributes by kernels.

What kernels hand to each other is the address of a record. Numba would pass a tuple by its members,
and take longer to compile for each.
"""

from llvmlite import ir
from numba.core import types
from numba.core.imputils import lower_getattr_generic, lower_setattr_generic
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.extending import intrinsic, models, register_model

from blocksparse_ops.kernels.numba.vector import WORD, WORD_BYTES, Code, word

RECORDS = {}

# The type of a field that is of the record's type of scalar.
SCALAR = "scalar"


class RecordType(types.Type):
    """The Numba type of the address of a record for one type of scalar."""

    def __init__(self, record, scalar):
        self.record_name, self.scalar = record.name, scalar
        super().__init__(f"{record.name}({scalar})")

    @property
    def record(self):
        # By its name, so that Numba can put the type on its disk cache.
        return RECORDS[self.record_name]


@register_model(RecordType)
class RecordModel(models.PrimitiveModel):
    def __init__(self, manager, record_type):
        super().__init__(manager, record_type, WORD)


def scalar_of(like):
    """The type of scalar of a record's type, or the type itself."""
    return like.scalar if isinstance(like, RecordType) else like


def words_of(field):
    """How many words a field takes."""
    if isinstance(field, Record):
        return field.words
    return sum(map(words_of, field)) if isinstance(field, types.BaseTuple) else 1


class Record:
    """
    Parameters
    ----------
    name : str
        For its Numba type.
    words : str
        The names of fields that are words.
    **others : Numba type, SCALAR or Record
        Fields that are tuples of words, scalars, and records that stand inside this one.
    """

    def __init__(self, name, words="", **others):
        self.name, self.fields = name, dict.fromkeys(words.split(), types.int64) | others
        self.offsets, self.words = {}, 0
        for field, field_type in self.fields.items():
            self.offsets[field] = self.words * WORD_BYTES
            self.words += words_of(field_type)
        self.at, self.new = self._make_at(), self._make_new()
        RECORDS[name] = self

    def type_of(self, field, scalar):
        field_type = self.fields.get(field)
        if isinstance(field_type, Record):
            return RecordType(field_type, scalar)
        return scalar if field_type == SCALAR else field_type

    def address(self, builder, record, field):
        """The address of a field."""
        return builder.add(record, word(self.offsets[field]))

    def load(self, code, record, field, llvm_type=WORD):
        """Write the code that reads a field."""
        return code.load(self.address(code.builder, record, field), llvm_type, align=WORD_BYTES)

    def load_array(self, code, record, field):
        """Write the code that reads a field that is an array: its address, sizes and strides."""
        (_, sizes, _) = self.fields[field].types
        words = [
            code.load(
                code.offset(self.address(code.builder, record, field), k, word(WORD_BYTES)),
                WORD,
                align=WORD_BYTES,
            )
            for k in range(words_of(self.fields[field]))
        ]
        return words[0], words[1 : sizes.count + 1], words[sizes.count + 1 :]

    def store(self, code, record, field, value):
        """Write the code that sets a field."""
        code.store(value, self.address(code.builder, record, field), align=WORD_BYTES)

    def _make_at(self):
        @intrinsic
        def at(typing_context, records, position, like):
            """A record of a table, for the type of scalar of `like`."""

            def generate(context, builder, signature, arguments):
                records, position, _ = arguments
                return Code(builder).offset(records, position, word(self.words * WORD_BYTES))

            record_type = RecordType(self, scalar_of(like))
            return record_type(types.int64, types.int64, like), generate

        return at

    def _make_new(self):
        @intrinsic
        def new(typing_context, like):
            """A record that lives until the function returns."""

            def generate(context, builder, signature, arguments):
                with builder.goto_entry_block():
                    record = builder.alloca(ir.ArrayType(WORD, self.words))
                return builder.ptrtoint(record, WORD)

            return RecordType(self, scalar_of(like))(like), generate

        return new


@infer_getattr
class RecordFields(AttributeTemplate):
    key = RecordType

    def generic_resolve(self, record_type, field):
        return record_type.record.type_of(field, record_type.scalar)


@lower_getattr_generic(RecordType)
def get_field(context, builder, record_type, address, field):
    record, field_type = record_type.record, record_type.record.type_of(field, record_type.scalar)
    if isinstance(field_type, RecordType):
        return record.address(builder, address, field)
    return record.load(Code(builder), address, field, context.get_value_type(field_type))


@lower_setattr_generic(RecordType)
def set_field(context, builder, signature, arguments, field):
    address, value = arguments
    signature.args[0].record.store(Code(builder), address, field, value)


@intrinsic
def address_of_record(typing_context, record):
    """For threads: Numba hands them numbers only."""

    def generate(context, builder, signature, arguments):
        return arguments[0]

    return types.int64(record), generate
