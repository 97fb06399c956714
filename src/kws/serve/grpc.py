"""The gRPC interface of the Open Inference Protocol.

The messages come from `tritonclient`, which has those of the protocol and Triton's extensions. gRPC itself answers
UNIMPLEMENTED for methods that the server does not have (loading models, shared memory, …).
"""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import grpc
from grpc import StatusCode
from tritonclient.grpc import service_pb2 as pb

from kws.serve import protocol
from kws.serve.protocol import Call, Refused, Tensor, Wish, demand

if TYPE_CHECKING:
    from kws.serve.service import Service

CODES = {
    HTTPStatus.BAD_REQUEST: StatusCode.INVALID_ARGUMENT,
    HTTPStatus.NOT_FOUND: StatusCode.NOT_FOUND,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: StatusCode.RESOURCE_EXHAUSTED,
    HTTPStatus.TOO_MANY_REQUESTS: StatusCode.RESOURCE_EXHAUSTED,
    HTTPStatus.SERVICE_UNAVAILABLE: StatusCode.UNAVAILABLE,
}

Method = Callable[[Any, Any, Any], Awaitable[Any]]


def _answered(method: Method) -> Method:
    """Converts `Refused` to a gRPC status with its message."""

    async def call(self: Any, request: Any, context: Any) -> Any:
        try:
            return await method(self, request, context)
        except Refused as refused:
            await context.abort(CODES[refused.status], str(refused))

    return call


METHODS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")


class Servicer:
    """Answers gRPC calls by a `Service`."""

    def __init__(self, service: "Service") -> None:
        self.service = service

    async def ServerLive(self, request: Any, context: Any) -> Any:
        """Tells that the process is alive."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        """Tells whether the server is ready for inference."""
        return pb.ServerReadyResponse(ready=self.service.is_ready)

    @_answered
    async def ModelReady(self, request: Any, context: Any) -> Any:
        """Tells whether a model, or a version of it, is ready for inference."""
        self.service.require_name(request.name)
        served = self.service.models.current
        known = served is not None and request.version in ("", served.version)
        return pb.ModelReadyResponse(ready=self.service.is_ready and known)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        """Describes the server."""
        return pb.ServerMetadataResponse(**self.service.metadata())

    @_answered
    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        """Describes the model."""
        found = protocol.model_metadata(request.name, self.service.served(request.name, request.version))
        return pb.ModelMetadataResponse(
            name=found["name"],
            versions=found["versions"],
            platform=found["platform"],
            inputs=[pb.ModelMetadataResponse.TensorMetadata(**tensor) for tensor in found["inputs"]],
            outputs=[pb.ModelMetadataResponse.TensorMetadata(**tensor) for tensor in found["outputs"]],
        )

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        """Recognizes clips."""
        with self.service.observe("grpc") as observed:
            try:
                most = self.service.config.max_request_mib << 20
                if (size := request.ByteSize()) > most:
                    raise Refused(
                        f"the request must have at most {most} bytes (the server's --max-request-mib), got {size}",
                        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    )
                served = self.service.served(request.model_name, request.model_version)
                observed.version = served.version
                call = _read(request)
                answer = _write(call, request, served, await self.service.infer(call, served))
                observed.status = "OK"
                return answer
            except Refused as refused:
                observed.status = CODES[refused.status].name
                await context.abort(CODES[refused.status], str(refused))


def _read(request: Any) -> Call:
    """Reads a ModelInferRequest."""
    raw = request.raw_input_contents
    demand(
        len(raw) in (0, len(request.inputs)),
        "raw_input_contents",
        f"be as many as the inputs ({len(request.inputs)}), or none",
        len(raw),
    )
    tensors = []
    for number, tensor in enumerate(request.inputs):
        demand(
            all(side >= 0 for side in tensor.shape),
            f"shape of {tensor.name}",
            "have no negative side",
            list(tensor.shape),
        )
        demand(
            not raw or not tensor.HasField("contents"),
            tensor.name,
            "have contents or raw_input_contents, not both",
            "both",
        )
        contents = tensor.contents
        data = contents.bytes_contents if tensor.datatype == "BYTES" else contents.fp32_contents
        tensors.append(
            Tensor(
                name=tensor.name,
                datatype=tensor.datatype,
                shape=list(tensor.shape),
                data=list(data),
                raw=raw[number] if raw else None,
            )
        )
    binary = bool(raw)
    wishes = []
    for output in request.outputs:
        classes = output.parameters["classification"].int64_param if "classification" in output.parameters else 0
        wishes.append(protocol.wish(output.name, {"classification": classes}, binary))
    return Call(
        id=request.id,
        inputs=tensors,
        wishes=wishes or tuple(Wish(name=each, binary=binary) for each in (protocol.PROBABILITIES, protocol.WORDS)),
    )


def _write(call: Call, request: Any, served: Any, outputs: Any) -> Any:
    """Returns a ModelInferResponse, with raw outputs if the request had raw inputs, as clients expect."""
    answer = pb.ModelInferResponse(model_name=request.model_name, model_version=served.version, id=call.id)
    for output in outputs:
        tensor = answer.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
        if output.binary:
            answer.raw_output_contents.append(output.raw())
        elif output.datatype == "FP32":
            tensor.contents.fp32_contents.extend(output.values.reshape(-1).tolist())
        else:
            tensor.contents.bytes_contents.extend(output.values)
    return answer


async def start(service: "Service", address: str) -> tuple[Any, int]:
    """Starts a gRPC server in the running event loop.

    Returns:
        The server, and the port on which it listens.

    Raises:
        OSError: the port is taken.
    """
    # gRPC accepts messages up to twice the limit, so that our own error can name the setting.
    most = 2 * (service.config.max_request_mib << 20)
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", most), ("grpc.so_reuseport", 0)])
    servicer = Servicer(service)
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            getattr(servicer, name),
            request_deserializer=getattr(pb, f"{name}Request").FromString,
            response_serializer=getattr(pb, f"{name}Response").SerializeToString,
        )
        for name in METHODS
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers)])
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(
            f"grpc_port must be free, got {address}, which is in use; choose another with --grpc-port"
        ) from error
    await server.start()
    return server, port
