"""Static files under ASGI."""

from django.http import HttpRequest, HttpResponse
from whitenoise.middleware import WhiteNoiseMiddleware
from whitenoise.responders import StaticFile


class StaticFilesMiddleware(WhiteNoiseMiddleware):
    """WhiteNoise, answering with the bytes: its file iterator is synchronous, which Django warns of under ASGI.

    Our largest file is 0.4 MB, and under ASGI Django reads such an iterator to its end before sending anyway.
    """

    @staticmethod
    def serve(static_file: StaticFile, request: HttpRequest) -> HttpResponse:
        answer = static_file.get_response(request.method, request.META)
        response = HttpResponse(status=int(answer.status))
        del response["content-type"]
        for name, value in answer.headers:
            response[name] = value
        if answer.file:
            with answer.file as file:
                response.content = file.read()
            # WhiteNoise knows the length that the file had when the process started.
            response["Content-Length"] = str(len(response.content))
        return response
