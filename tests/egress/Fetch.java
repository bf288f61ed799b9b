import java.net.URI;
import java.net.URL;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.security.cert.Certificate;
import java.security.cert.X509Certificate;
import java.time.Duration;
import javax.net.ssl.HttpsURLConnection;

/** Fetches a URL with both of Java's own clients, and prints for each who issued the server's certificate, and the body. */
public class Fetch {
    private static final int PATIENCE_MS = 15_000;

    public static void main(String[] arguments) throws Exception {
        boolean good = true;
        for (String client : new String[] {"connection", "client"}) {
            try {
                System.out.println(client + ": " + (client.equals("client") ? client(arguments[0]) : connection(arguments[0])));
            } catch (Exception error) {
                System.out.println(client + ": " + error);
                good = false;
            }
        }
        System.exit(good ? 0 : 1);
    }

    private static String connection(String url) throws Exception {
        HttpsURLConnection connection = (HttpsURLConnection) new URL(url).openConnection();
        connection.setConnectTimeout(PATIENCE_MS);
        connection.setReadTimeout(PATIENCE_MS);
        String body = new String(connection.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
        return issuer(connection.getServerCertificates()) + " " + body.strip();
    }

    private static String client(String url) throws Exception {
        HttpRequest request = HttpRequest.newBuilder(URI.create(url)).timeout(Duration.ofMillis(PATIENCE_MS)).build();
        HttpResponse<String> response = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
        return issuer(response.sslSession().orElseThrow().getPeerCertificates()) + " " + response.body().strip();
    }

    private static String issuer(Certificate[] chain) {
        return ((X509Certificate) chain[0]).getIssuerX500Principal().getName();
    }
}
