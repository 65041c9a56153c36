"""The address on a device's message: from itself, to the server, as an answer.

Flower 1.41 checks that the key of a request belongs to the node that it names. It does not check
that the message inside is from that node, nor that it goes to the server: a device could answer
for another, or send another an instruction of its own.
"""

from __future__ import annotations

_SERVER = 1
"""The node number of Flower's server (`SUPERLINK_NODE_ID`)."""
_MOST_PARTS = 10_000


def fault_of_push(body: bytes) -> str | None:
    """Say what is wrong with the body of `push-messages`, or None.

    The node that the request names is compared with the message's metadata; that the node is the
    signer's, Flower's server checks next.
    """
    from flwr.proto.fleet_pb2 import PushMessagesRequest
    from google.protobuf.message import DecodeError

    request = PushMessagesRequest()
    try:
        request.ParseFromString(body)
    except DecodeError:
        return "not a message"
    if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
        return "one message with its tree of parts is expected"
    metadata = request.messages_list[0].metadata
    if not request.HasField("node") or metadata.src_node_id != request.node.node_id:
        return "the message claims another sender"
    if metadata.dst_node_id != _SERVER or not metadata.reply_to_message_id:
        return "the message is not an answer to the server"
    if _too_many_parts(request.message_object_trees[0]):
        return "the message has too many parts"
    return None


def _too_many_parts(tree: object) -> bool:
    count, todo = 0, [tree]
    while todo:
        count += 1
        if count > _MOST_PARTS:
            return True
        todo.extend(getattr(todo.pop(), "children", ()))
    return False
