import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.stream.Collectors;

/** Asks a server for chats with Java's own client, which offers an upgrade to HTTP/2 with every request. */
public class JavaClient {
    static final int NUM_IN_A_ROW = 5;
    static final int NUM_AT_ONCE = 8;

    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        URI uri = URI.create(arguments[0] + "/v1/chat/completions");
        for (int number = 0; number < NUM_IN_A_ROW; number++) {
            print(client.send(request(uri, "whole-" + number, false), HttpResponse.BodyHandlers.ofString()));
            HttpResponse<java.util.stream.Stream<String>> streamed =
                    client.send(request(uri, "stream-" + number, true), HttpResponse.BodyHandlers.ofLines());
            print(streamed, streamed.body().collect(Collectors.joining("\\n")));
        }
        List<CompletableFuture<HttpResponse<String>>> futures = new ArrayList<>();
        for (int number = 0; number < NUM_AT_ONCE; number++) {
            futures.add(client.sendAsync(
                    request(uri, "async-" + number, number % 2 == 1), HttpResponse.BodyHandlers.ofString()));
        }
        for (CompletableFuture<HttpResponse<String>> future : futures) {
            print(future.get());
        }
    }

    static HttpRequest request(URI uri, String name, boolean isStreamed) {
        String body = "{\"model\": \"tiny\", \"messages\": [{\"role\": \"user\", \"content\": \"" + name
                + "\"}], \"max_tokens\": 6, \"stream\": " + isStreamed + "}";
        return HttpRequest.newBuilder(uri)
                .header("content-type", "application/json")
                .header("x-request-id", name)
                .POST(HttpRequest.BodyPublishers.ofString(body))
                .build();
    }

    static void print(HttpResponse<String> response) {
        print(response, response.body().replace("\n", "\\n"));
    }

    static void print(HttpResponse<?> response, String body) {
        String name = response.headers().firstValue("x-request-id").orElse("none");
        System.out.println(name + " " + response.statusCode() + " " + response.version() + " " + body);
    }
}
